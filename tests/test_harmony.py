"""Names of scales and chords against pitch classes written by hand; strong beats; what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from musicgpt.constraints import Constraints
from musicgpt.errors import UsageError
from musicgpt.harmony import CHORDS, bar_tones, read_chords, strong_steps

C, Db, D, Eb, E, F, Gb, G, Ab, A, Bb, B = range(12)


@pytest.mark.parametrize(
    ("names", "tones"),
    [
        ("C CM Cmaj", {C, E, G}),
        ("Am Amin A-", {A, C, E}),
        ("F# Gb F♯ G♭", {Gb, Bb, Db}),
        ("Bdim B° Bo", {B, D, F}),
        ("Eaug E+", {E, Ab, C}),
        ("D5", {D, A}),
        ("Gsus4 Gsus", {G, C, D}),
        ("Asus2", {A, B, E}),
        ("F6", {F, A, C, D}),
        ("Dm6", {D, F, A, B}),
        ("C69 C6/9", {C, D, E, G, A}),
        ("G7", {G, B, D, F}),
        ("Bbmaj7 BbM7 B♭Δ", {Bb, D, F, A}),
        ("Cm7 Cmin7 C-7", {C, Eb, G, Bb}),
        ("AmM7 Ammaj7 Am(maj7)", {A, C, E, Ab}),
        ("C#dim7 Db°7", {Db, E, G, Bb}),
        ("Bm7b5 Bø Bm7(b5) Bm7♭5", {B, D, F, A}),
        ("Faug7 F+7 F7#5", {F, A, Db, Eb}),
        ("E7sus4", {E, A, B, D}),
        ("Cadd9 Cadd2", {C, D, E, G}),
        ("Dm9", {D, F, A, C, E}),
        ("E7b9 E7(b9)", {E, Ab, B, D, F}),
        ("E7#9", {E, Ab, B, D, G}),
        ("G13", {G, B, D, F, A, E}),
        ("C/G C/F#", {C, E, G}),
        ("Cb Bmaj", {B, Eb, Gb}),
    ],
)
def test_chords_by_hand(names: str, tones: set[int]) -> None:
    for chord in read_chords(names):
        assert set(chord.tones) == tones, chord
        assert chord.bass == ("/F#" in chord.name or "/G" in chord.name)


def test_every_kind_has_its_root_and_no_tone_twice() -> None:
    for kind, steps in CHORDS.items():
        assert steps[0] == 0
        assert len({step % 12 for step in steps}) == len(steps), kind


@pytest.mark.parametrize(
    ("chords", "scale"),
    [
        ("Am F C G", "C major"),
        ("C", "C major"),
        ("Am", "C major"),
        ("G D Em C", "G major"),
        ("Dm7 G7", "C major"),
        ("Bb Eb F", "Bb major"),
        ("C7 F7 G7", "C major"),
        ("C7 F7 C7 G7", "F major"),
        ("Bm7b5 E7 Am N.C.", "C major"),
    ],
)
def test_the_scale_that_follows_from_chords(chords: str, scale: str) -> None:
    assert Constraints(chords=chords).remarks == [f"the scale of these chords is {scale}"]


def test_what_may_begin_where() -> None:
    chords = read_chords("Am E7 N.C.")
    c_major = {C, D, E, F, G, A, B}

    def sets(**how: bool) -> list[list[set[int]]]:
        return [[set(np.flatnonzero(row).tolist()) for row in bar] for bar in bar_tones(chords, **how)]

    am, e7 = {A, C, E}, {E, Ab, B, D}
    assert sets(scaled=False, strict=False) == [[c_major, am], [c_major | {Ab}, e7], [c_major, c_major]]
    assert sets(scaled=False, strict=True) == [[am, am], [e7, e7], [c_major, c_major]]
    every = set(range(12))
    assert sets(scaled=True, strict=False) == [[every, am], [every, e7], [every, every]]


@pytest.mark.parametrize(
    ("beats", "strong"),
    [
        (1, [0]),
        (2, [0, 1]),
        (3, [0]),
        (4, [0, 2]),
        (5, [0]),
        (6, [0, 3]),
        (7, [0]),
        (8, [0, 4]),
        (9, [0, 3, 6]),
        (12, [0, 3, 6, 9]),
    ],
)
def test_strong_beats(beats: int, strong: list[int]) -> None:
    for steps_per_beat in (1, 2, 4, 6, 24):
        late = range(max(1, steps_per_beat // 4)) if steps_per_beat != 6 else range(2)
        expected = [beat * steps_per_beat + step for beat in strong for step in late]
        assert np.flatnonzero(strong_steps(beats, steps_per_beat)).tolist() == expected


def test_a_tone_that_is_not_of_the_scale_asked_for_is_said() -> None:
    assert Constraints(chords="Am E7/B Dm", scale="A minor").remarks == [
        "E7/B: its bass is not asked for",
        "E7/B: its tones that are not of A minor are left out",
    ]


@pytest.mark.parametrize("text", ["H", "am", "C Xm", "Cmaj7b5x", "C/H", "C | F", "Cm/", "any", "#"])
def test_a_name_that_is_no_chord_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no chord that is known here: expected a root from A"):
        Constraints(chords=text)


@pytest.mark.parametrize("text", ["", " ", "N.C. nc"])
def test_a_list_without_a_chord_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--chords '.*': expected a chord for each bar, as 'Am F C G'$"):
        Constraints(chords=text)


def test_strictness_without_chords_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--chords-strict: expected --chords, too$"):
        Constraints(chords_strict=True)


def test_what_was_asked_is_the_same_again() -> None:
    asked = Constraints(chords="Am F C/G N.C.", chords_strict=True)
    assert Constraints(**asked.asdict()) == asked
    assert Constraints(chords=["Am", "F"]).progression == read_chords("Am F")  # type: ignore[arg-type]
