"""Copies share a key with their original, other music does not: on real files, and as laws on made ones."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from changes import CHANGES, EXACT, RESOLUTIONS
from hypothesis import given
from hypothesis import strategies as st
from symusic.core import NoteTickList, ScoreTick, TrackTick

from musicgpt import midi
from musicgpt.similarity import BANDS, ROWS, likeness
from musicgpt.tokenizer import new_tokenizer

SIXTEENTH = 120
SCALE = np.cumsum([0, *[2, 2, 1, 2, 2, 2, 1] * 4])


def tune(pitches: list[int], onsets: list[int] | None = None, *, drums: bool = False) -> ScoreTick:
    """One voice at 480 ticks a quarter note, in sixteenths where no onsets are given."""
    score, track = ScoreTick(480), TrackTick("", 0, drums)
    time = [SIXTEENTH * n for n in range(len(pitches))] if onsets is None else onsets
    columns = (time, [SIXTEENTH] * len(time), pitches, [80] * len(time))
    track.notes = NoteTickList.from_numpy(
        *(np.array(c, dtype=t) for c, t in zip(columns, ("i4", "i4", "i1", "i1"), strict=True))
    )
    score.tracks.append(track)
    return score


def exported(score: ScoreTick, ticks_per_quarter: int) -> ScoreTick:
    """Each onset at the nearest tick."""
    copy = ScoreTick(ticks_per_quarter)
    for track in score.tracks:
        notes, other = track.notes.numpy(), TrackTick("", track.program, track.is_drum)
        time = np.rint(notes["time"] * (ticks_per_quarter / score.ticks_per_quarter)).astype(np.int32)
        other.notes = NoteTickList.from_numpy(time, np.ones_like(time), notes["pitch"], notes["velocity"])
        copy.tracks.append(other)
    return copy


def share(one: ScoreTick, other: ScoreTick) -> int:
    return len(set(likeness(one)) & set(likeness(other)))


def alike(scores: list[ScoreTick]) -> list[tuple[int, int]]:
    keys = [set(likeness(score)) for score in scores]
    return [(a, b) for a, b in combinations(range(len(scores)), 2) if keys[a] & keys[b]]


def written_and_read(score: ScoreTick) -> ScoreTick:
    return midi.read_midi(score.dumps_midi(), "copy")


@pytest.fixture(scope="module")
def pieces(corpora: list[Path]) -> list[ScoreTick]:
    return [midi.read_scores(path)[0][0] for path in corpora]


@pytest.mark.parametrize("change", EXACT)
def test_what_does_not_touch_the_line_leaves_every_key(change: str, pieces: list[ScoreTick]) -> None:
    tried = 0
    for n, piece in enumerate(pieces):
        copy = EXACT[change](piece, random.Random(n))
        if copy is not None:
            tried += 1
            assert likeness(written_and_read(copy)) == likeness(piece)
    assert tried >= 20


@pytest.mark.parametrize("change", [name for name in CHANGES if name not in EXACT])
def test_copies_of_real_pieces_are_found(change: str, pieces: list[ScoreTick]) -> None:
    compared = [piece for piece in pieces if len(likeness(piece)) == BANDS]
    copies = [CHANGES[change](piece, random.Random(n)) for n, piece in enumerate(compared)]
    assert len(compared) >= 28  # all but the drums
    for piece, copy in zip(compared, copies, strict=True):
        if copy is not None:
            assert share(piece, written_and_read(copy))


def test_different_pieces_share_nothing(pieces: list[ScoreTick]) -> None:
    assert alike(pieces) == []


def test_of_a_book_of_tunes_only_the_one_that_is_there_twice_is_found(tunes: list[ScoreTick]) -> None:
    names = [(tunes[a].tracks[0].name, tunes[b].tracks[0].name) for a, b in alike(tunes)]
    assert names == [("Johnie's Grey Breeks.", "Johnie's Grey Breeks. for the Ger: Flute.")]


pitch = st.integers(40, 80)
melodies = st.lists(pitch, min_size=1, max_size=20) | st.lists(pitch, min_size=60, max_size=100)  # short, and enough
units = st.lists(st.integers(0, 24), min_size=100, max_size=100)


@given(pitches=melodies, steps=units, semitones=st.integers(-40, 47), ticks=st.sampled_from(RESOLUTIONS))
def test_another_key_and_another_resolution_leave_every_key(
    pitches: list[int], steps: list[int], semitones: int, ticks: int
) -> None:
    onsets = (20 * np.cumsum(steps[: len(pitches)])).tolist()  # on a grid of 24 steps a quarter note, chords included
    copy = exported(tune([pitch + semitones for pitch in pitches], onsets), ticks)
    assert likeness(copy) == likeness(tune(pitches, onsets))


@given(seed=st.integers(0, 2**32))
def test_melodies_in_one_rhythm_are_not_alike(seed: int) -> None:
    chance = random.Random(seed)
    onsets = np.cumsum([chance.choice([60, 120, 240]) for _ in range(100)]).tolist()
    steps = [np.cumsum(chance.choices([-2, -1, 1, 2, 3, -3], k=100)) for _ in range(2)]
    first, second = (tune((64 + step % 24).tolist(), onsets) for step in steps)
    assert len(likeness(first)) == BANDS
    assert not share(first, second)


def test_the_plain_and_the_short_are_alike_only_if_they_are_the_same() -> None:
    scales = [
        tune([36 + int(n) for n in [*SCALE[: 7 * octaves + 1], *SCALE[: 7 * octaves][::-1]] * times])
        for octaves in (1, 2, 3, 4)
        for times in (1, 5)
    ]
    notes = [tune([60] * n) for n in (1, 2, 100, 200)]
    slower = tune([60] * 100, [240 * n for n in range(100)])
    beats = [tune([36, 42, 38, 42] * n, drums=True) for n in (1, 50)]
    other_beat = tune([35, 42, 38, 42] * 50, drums=True)
    plain = [*scales, *notes, slower, *beats, other_beat, tune([60, 64, 67]), tune([60, 63, 67])]
    assert all(len(likeness(score)) == 1 for score in plain)
    assert alike(plain) == []
    for score in scales:
        copy = midi.transposed(score, 5)
        assert copy is not None
        assert share(copy, score) == 1


def test_no_notes_no_keys() -> None:
    assert likeness(ScoreTick(480)) == likeness(tune([])) == []


def test_drums_do_not_matter_beside_other_music(pieces: list[ScoreTick]) -> None:
    for piece in pieces:
        if len(likeness(piece)) == BANDS:
            copy = piece.copy()
            copy.tracks.append(tune([36, 38] * 100, drums=True).tracks[0])
            assert likeness(copy) == likeness(piece)


@pytest.mark.parametrize("common", [0.3, 0.5, 0.7, 0.9])
def test_a_key_is_shared_with_the_probability_it_says(common: float) -> None:
    chance = np.random.default_rng(1)
    shared, expected = [], []
    for _ in range(200):
        first, second = (chance.integers(30, 90, 400) for _ in range(2))
        length = round(400 * 2 * common / (1 + common))
        second[:length] = first[:length]
        runs = length - 12  # of 388 in each
        expected.append((runs / (2 * 388 - runs)) ** ROWS)
        shared.append(share(tune(first.tolist()), tune(second.tolist())) / BANDS)
    error = np.sqrt(np.mean(expected) * (1 - np.mean(expected)) / (200 * BANDS))
    assert abs(np.mean(shared) - np.mean(expected)) < 4 * error


def test_keys_are_the_same_in_every_process_and_on_every_machine() -> None:
    pitches = [60 + n * n % 23 for n in range(60)]
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from test_similarity import likeness, tune; print(*likeness(tune({pitches})))"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        printed = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True)
        assert printed.stdout.decode().split() == likeness(tune(pitches))
    assert likeness(tune(pitches))[:2] == ["b1140e33f4a44cc7", "bb8b0f184413556d"]
    assert likeness(tune([60, 62, 64])) == ["bb0f407e6746a062"]


def test_the_tokenizers_hand_on_what_is_known_of_their_documents(tunes: list[ScoreTick]) -> None:
    assert new_tokenizer("tsd").likeness(tunes[0]) == likeness(tunes[0])
    assert new_tokenizer("bytes").likeness("to be") == []
