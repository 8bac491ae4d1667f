"""The replay agrees with miditok on real music, and finds every kind of mistake where it is."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import pytest
from replay import FileNote, IllFormed, Note, Played, read_back, replay
from symusic.core import NoteTick, NoteTickList, ScoreTick, TrackTick

from musicgpt import midi
from musicgpt.midi_tokenizer import SCHEMES, MidiTokenizer

METRED = ("remi", "tsd", "midilike")
KEPT: dict[str, MidiTokenizer] = {}


def tokenizer_of(scheme: str, learn_from: list[ScoreTick] | None = None) -> MidiTokenizer:
    if scheme not in KEPT:
        KEPT[scheme] = MidiTokenizer.new(scheme.removesuffix("+bpe"))
        if learn_from:
            KEPT[scheme].learn(learn_from, KEPT[scheme].vocab_size + 300)
    return KEPT[scheme]


def spelled(tokenizer: MidiTokenizer, ids: Iterable[int]) -> list[str]:
    return [token for id in ids for token in tokenizer.expansions[id]]


def clean(tokenizer: MidiTokenizer, score: ScoreTick) -> ScoreTick:
    """What the scheme makes of a piece, without the notes that begin while the same one sounds."""
    metred = tokenizer_of("remi")  # which puts every metre on a bar line
    score = metred.decode(metred.encode(score))
    while True:
        score = tokenizer.decode(tokenizer.encode(score))
        dropped = 0
        for track in score.tracks:
            ends: dict[int, int] = {}
            kept = []
            for note in sorted(track.notes, key=lambda note: (note.time, note.duration)):
                if ends.get(note.pitch, 0) <= note.time:
                    ends[note.pitch] = note.end
                    kept.append(note)
            dropped += len(track.notes) - len(kept)
            track.notes = NoteTickList(kept)
        if not dropped:
            return score


@pytest.fixture(scope="module")
def scores(corpora: list[Path]) -> list[ScoreTick]:
    read = [midi.read_scores(path)[0][0] for path in corpora]
    return [score for score in read if score.note_num() < 2500]


@pytest.fixture(scope="module")
def cleaned(scores: list[ScoreTick]) -> dict[str, list[ScoreTick]]:
    return {scheme: [clean(tokenizer_of(scheme), score) for score in scores[::2]] for scheme in SCHEMES}


@pytest.mark.parametrize("scheme", [name + learned for name in SCHEMES for learned in ("", "+bpe")])
def test_it_plays_what_miditok_decodes(scheme: str, scores: list[ScoreTick], tunes: list[ScoreTick]) -> None:
    learned = scheme.endswith("+bpe")
    tokenizer = tokenizer_of(scheme, tunes[:40] if learned else None)
    for score in scores[:: 3 if learned else 1]:
        ids = tokenizer.encode(score)
        played, decoded = replay(tokenizer.name, spelled(tokenizer, ids), strict=False), tokenizer.decode(ids)

        def quarters(ticks: int, per_quarter: int = decoded.ticks_per_quarter) -> Fraction:
            return Fraction(ticks, per_quarter)

        assert sorted(played.notes) == sorted(
            Note(quarters(n.time), quarters(n.duration), n.pitch, n.velocity, -1 if track.is_drum else track.program)
            for track in decoded.tracks
            for n in track.notes
        )
        if tokenizer.name in METRED:
            metres = [(quarters(m.time), m.numerator, m.denominator) for m in decoded.time_signatures]
            assert played.metres == metres
            assert [t for t, _ in played.tempos] == [quarters(t.time) for t in decoded.tempos]
            assert [b for _, b in played.tempos] == pytest.approx([t.qpm for t in decoded.tempos], abs=0.01)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_real_music_without_overlaps_keeps_the_strict_rules(scheme: str, cleaned: dict[str, list[ScoreTick]]) -> None:
    tokenizer = tokenizer_of(scheme)
    for score in cleaned[scheme]:
        assert len(replay(scheme, spelled(tokenizer, tokenizer.encode(score))).notes) == score.note_num()


def test_bar_lines_are_those_of_remi(cleaned: dict[str, list[ScoreTick]]) -> None:
    lines: dict[str, list[list[Fraction]]] = {}
    for scheme in METRED:
        tokenizer = tokenizer_of(scheme)
        lines[scheme] = [replay(scheme, spelled(tokenizer, tokenizer.encode(score))).bars for score in cleaned[scheme]]
    assert lines["tsd"] == lines["remi"]
    for with_ends, bars in zip(lines["midilike"], lines["remi"], strict=True):  # the last note may end bars later
        assert with_ends[: len(bars)] == bars


def test_a_hundred_thousand_tokens_take_seconds(scores: list[ScoreTick]) -> None:
    tokenizer = tokenizer_of("remi")
    tokens: list[str] = []
    while len(tokens) < 100_000:
        tokens += spelled(tokenizer, tokenizer.encode(scores[0]))
    start = time.perf_counter()
    replay("remi", tokens, strict=False)
    assert time.perf_counter() - start < 10


RIGHT = {
    "remi": "Bar_None TimeSig_3/4 Position_0 Tempo_120.0 Program_0 Pitch_60 Velocity_63 Duration_1.0.24 "
    "Pitch_64 Velocity_67 Duration_2.0.12 Program_-1 PitchDrum_36 Velocity_99 Duration_0.6.24 "
    "Position_24 Program_0 Pitch_60 Velocity_63 Duration_0.12.24 Bar_None TimeSig_6/8 "
    "Position_36 Tempo_60.0 Position_48 Pitch_62 Velocity_63 Duration_1.0.24 Bar_None TimeSig_6/8",
    "tsd": "TimeSig_3/4 Tempo_120.0 Program_0 Pitch_60 Velocity_63 Duration_1.0.24 "
    "Pitch_64 Velocity_67 Duration_2.0.12 Program_-1 PitchDrum_36 Velocity_99 Duration_0.6.24 "
    "TimeShift_1.0.24 Program_0 Pitch_60 Velocity_63 Duration_0.12.24 TimeShift_2.0.12 TimeSig_6/8 "
    "TimeShift_1.12.24 Tempo_60.0 TimeShift_0.12.24 Pitch_62 Velocity_63 Duration_1.0.24",
    "midilike": "TimeSig_3/4 Tempo_120.0 Program_0 NoteOn_60 Velocity_63 NoteOn_64 Velocity_67 "
    "Program_-1 DrumOn_36 Velocity_99 TimeShift_0.6.24 DrumOff_36 "
    "TimeShift_0.18.24 Program_0 NoteOff_60 NoteOn_60 Velocity_63 TimeShift_0.12.24 NoteOff_60 "
    "TimeShift_0.12.24 NoteOff_64 TimeShift_1.0.24 TimeSig_6/8 TimeShift_1.12.24 Tempo_60.0 "
    "TimeShift_0.12.24 NoteOn_62 Velocity_63 TimeShift_1.0.24 NoteOff_62",
    "structured": "TimeShift_0.0.1 Program_0 Pitch_60 Velocity_63 Duration_1.0.24 "
    "TimeShift_0.0.1 Program_0 Pitch_64 Velocity_67 Duration_2.0.12 "
    "TimeShift_0.0.1 Program_-1 PitchDrum_36 Velocity_99 Duration_0.6.24 "
    "TimeShift_1.0.24 Program_0 Pitch_60 Velocity_63 Duration_0.12.24 "
    "TimeShift_3.0.12 Program_0 Pitch_62 Velocity_63 Duration_0.12.24",
}
"""The same few notes in the four schemes."""


@pytest.mark.parametrize("scheme", RIGHT)
def test_the_right_sequences_say_the_same(scheme: str) -> None:
    played = replay(scheme, RIGHT[scheme].split())
    half = 0.5
    expected = [
        (0, 1, 60, 63, 0),
        (0, 2, 64, 67, 0),
        (0, half / 2, 36, 99, -1),
        (1, half, 60, 63, 0),
        (4, half, 62, 63, 0),
    ]
    assert sorted(map(tuple, played.notes)) == sorted(expected)
    assert not played.open
    assert not played.breaches
    if scheme in METRED:
        assert played.metres == [(Fraction(0), 3, 4), (Fraction(3), 6, 8)]
        assert played.tempos == [(0, 120), (Fraction(15, 4), 60)]
        assert played.bars == [0, 3, 6] + [9] * (scheme == "remi")


@pytest.mark.parametrize("scheme", RIGHT)
def test_it_may_stop_anywhere_where_that_is_allowed(scheme: str) -> None:
    tokens = RIGHT[scheme].split()
    for stop in range(len(tokens)):
        played = replay(scheme, tokens[:stop], ended=False)
        begun = len([token for token in tokens[:stop] if token.startswith(("Duration", "NoteOff", "DrumOff"))])
        assert len(played.notes) == begun


def test_nothing_at_all_is_well_formed() -> None:
    assert all(replay(scheme, []) == Played() for scheme in SCHEMES)


NOTE_OFFS = (
    "Program_0 NoteOn_{} Velocity_63 TimeShift_0.6.24 NoteOn_{} Velocity_63 TimeShift_0.6.24 NoteOff_{} NoteOff_{}"
)
SIXTEEN = {
    "remi": "Bar_None TimeSig_4/4 Position_0 "
    + " ".join(f"Program_{k} Pitch_60 Velocity_63 Duration_1.0.24" for k in range(16)),
    "tsd": " ".join(f"Program_{k} Pitch_60 Velocity_63 Duration_1.0.24" for k in range(16)),
    "midilike": " ".join(
        [*(f"Program_{k} NoteOn_60 Velocity_63" for k in range(16)), "TimeShift_1.0.24"]
        + [f"Program_{k} NoteOff_60" for k in range(16)]
    ),
    "structured": " ".join(f"TimeShift_0.0.1 Program_{k} Pitch_60 Velocity_63 Duration_1.0.24" for k in range(16)),
}

ALWAYS = [
    # scheme, what is replaced in the right sequence (see `mutated`), by what, the reason
    *((scheme, "Velocity_67", token, reason) for scheme in RIGHT for token, reason in [
        ("PAD_None", "no such kind"),
        ("BOS_None", "no such kind"),
        ("EOS_None", "no such kind"),
        ("Rest_1.0.24", "no such kind"),
        ("Velocity_0", "malformed"),
        ("Velocity_128", "malformed"),
        ("Velocity_x", "malformed"),
        ("Velocity", "malformed"),
        ("Program_-2", "malformed"),
        ("TimeSig_0/4", "malformed"),
        ("TimeSig_4/3", "malformed"),
        ("Tempo_0.0", "malformed"),
        ("Tempo_fast", "malformed"),
        ("Bar_1", "malformed"),
        ("Position_-1", "malformed"),
        ("Duration_0.0.24", "malformed"),
        ("Duration_0.24.24", "malformed"),
        ("Duration_1.0.0", "malformed"),
        ("TimeShift_0.0.24", "malformed"),
        ("TimeShift_1.0", "malformed"),
    ]),
    *((scheme, "_64", "_128", "malformed") for scheme in RIGHT),
    # tokens of other schemes
    ("remi", "Velocity_67", "TimeShift_1.0.24", "remi has no such"),
    ("remi", "Pitch_64", "NoteOn_64", "remi has no such"),
    ("tsd", "Velocity_67", "Position_3", "tsd has no such"),
    ("tsd", "TimeSig_3/4", "Bar_None TimeSig_3/4", "tsd has no such"),
    ("midilike", "Velocity_67", "Duration_1.0.24", "midilike has no such"),
    ("midilike", "NoteOn_64", "Pitch_64", "midilike has no such"),
    ("structured", "TimeShift_1.0.24", "Tempo_120.0", "structured has no such"),
    ("structured", "TimeShift_1.0.24", "TimeSig_4/4", "structured has no such"),
    # bars and positions
    ("remi", "Bar_None TimeSig_3/4 Position_0", "Position_0", "begins with a Bar"),
    ("remi", "Bar_None TimeSig_3/4", "TimeSig_3/4", "begins with a Bar"),
    ("remi", "Bar_None TimeSig_6/8 Position_36", "Bar_None Position_36", "followed by its TimeSig"),
    ("remi", "Bar_None TimeSig_6/8 Position_36", "TimeSig_6/8 Position_36", "right behind its Bar"),
    ("remi", "Bar_None TimeSig_6/8 Position_36", "Bar_None TimeSig_6/8 TimeSig_6/8", "right behind its Bar"),
    ("remi", "Position_24", "Position_0", "Positions rise"),
    ("remi", "Position_48", "Position_24", "Positions rise"),
    ("remi", "Position_24", "Position_72", "within its bar"),
    ("remi", "Position_48", "Position_144", "within its bar"),
    ("remi", "Position_24", "Position_12 Position_24", "followed by a Tempo or a note"),
    ("remi", "Position_24", "Position_24 Bar_None TimeSig_3/4 Position_0", "followed by a Tempo or a note"),
    ("remi", "Position_0 Tempo_120.0", "Tempo_120.0 Position_0", "a Tempo stands"),
    ("remi", "Position_0 Tempo_120.0", "", "a Program stands"),
    ("remi", "Position_0 Tempo_120.0 Program_0", "", "a note stands at a moment"),
    # moments
    *((scheme, "Tempo_120.0", "Tempo_120.0 Tempo_60.0", "a Tempo stands at most once") for scheme in METRED),
    ("remi", "Duration_2.0.12", "Duration_2.0.12 Tempo_60.0", "a Tempo stands"),
    ("tsd", "Duration_2.0.12", "Duration_2.0.12 Tempo_60.0", "a Tempo stands"),
    ("midilike", "Velocity_67", "Velocity_67 Tempo_60.0", "a Tempo stands"),
    ("tsd", "TimeSig_3/4 Tempo_120.0", "Tempo_120.0 TimeSig_3/4", "a TimeSig stands"),
    ("tsd", "TimeSig_3/4", "TimeSig_4/4 TimeSig_3/4", "a TimeSig stands"),
    ("tsd", "Duration_2.0.12", "Duration_2.0.12 TimeSig_4/4", "a TimeSig stands"),
    ("midilike", "Velocity_67", "Velocity_67 TimeSig_4/4", "a TimeSig stands"),
    ("tsd", "TimeShift_2.0.12", "TimeShift_0.0.1", "a TimeShift moves"),
    ("midilike", "TimeShift_0.18.24", "TimeShift_0.0.1", "a TimeShift moves"),
    # notes
    *((scheme, "Velocity_67", "", "note is pitch, Velocity") for scheme in ("remi", "tsd")),
    ("midilike", "Velocity_67", "Velocity_67 Velocity_67", "a Velocity stands"),
    ("midilike", "NoteOff_64", "NoteOff_64 Velocity_67", "a Velocity stands"),
    ("midilike", "NoteOn_64", "NoteOn_65 NoteOn_64", "note is pitch, Velocity"),
    *((scheme, "Duration_2.0.12", "", "note is pitch, Velocity") for scheme in ("remi", "tsd")),
    *((s, "Velocity_67 Duration_2.0.12", "Duration_2.0.12 Velocity_67", "is pitch, Velocity") for s in ("remi", "tsd")),
    *((s, "Duration_2.0.12", "Duration_2.0.12 Duration_2.0.12", "a Duration stands") for s in ("remi", "tsd")),
    *((scheme, "Duration_2.0.12", "Duration_2.0.12 Velocity_67", "a Velocity stands") for scheme in ("remi", "tsd")),
    # programs
    ("remi", "Tempo_120.0 Program_0", "Tempo_120.0", "has a Program before it"),
    ("tsd", "Tempo_120.0 Program_0", "Tempo_120.0", "has a Program before it"),
    ("midilike", "Tempo_120.0 Program_0", "Tempo_120.0", "has a Program before it"),
    *((scheme, "Program_-1", "Program_5 Program_-1", "a Program is followed by a note") for scheme in METRED),
    ("tsd", "TimeShift_1.0.24", "Program_0 TimeShift_1.0.24", "a Program is followed by a note"),
    ("tsd", "Tempo_60.0", "Program_5 Tempo_60.0", "a Program is followed by a note"),
    *((scheme, "PitchDrum_36", "Pitch_36", "drums have") for scheme in ("remi", "tsd", "structured")),
    *((scheme, "Pitch_64", "PitchDrum_64", "drums have") for scheme in ("remi", "tsd", "structured")),
    ("midilike", "DrumOn_36", "NoteOn_36", "drums have"),
    ("midilike", "DrumOff_36", "NoteOff_36", "drums have"),
    ("midilike", "NoteOn_64", "DrumOn_64", "drums have"),
    ("midilike", "NoteOff_64", "DrumOff_64", "drums have"),
    # the ends of notes
    ("midilike", "NoteOff_64", "NoteOff_65", "that sounds"),
    ("midilike", "NoteOff_64", "NoteOff_64 NoteOff_64", "that sounds"),
    ("midilike", "NoteOff_64", "Program_1 NoteOff_64", "that sounds"),
    ("midilike", "DrumOff_36", "DrumOff_37", "that sounds"),
    ("midilike", "Velocity_67", "Velocity_67 NoteOff_64", "has a length"),
    ("midilike", "NoteOff_62", "", "open at the end"),
    ("midilike", "DrumOff_36", "", "open at the end"),
    # the cycle of structured
    *(("structured", *change, "the cycle is") for change in [
        ("TimeShift_1.0.24", ""),
        ("TimeShift_1.0.24", "TimeShift_1.0.24 TimeShift_1.0.24"),
        ("Program_-1", ""),
        ("Pitch_64", ""),
        ("Velocity_67", ""),
        ("Duration_2.0.12", ""),
        ("Velocity_67 Duration_2.0.12", "Duration_2.0.12 Velocity_67"),
        ("TimeShift_1.0.24 Program_0", "Program_0 TimeShift_1.0.24"),
        ("Duration_2.0.12", "Duration_2.0.12 Pitch_67 Velocity_67 Duration_2.0.12"),
    ]),
    # the end
    *((scheme, " Duration_1.0.24@end", "", "the end comes within") for scheme in ("remi", "tsd")),
    *((scheme, "@end", " Program_5", "the end comes within") for scheme in METRED),
    *((s, "@end", " Program_5 Pitch_70", "the end comes within") for s in ("tsd",)),
    ("remi", " TimeSig_6/8@end", "", "the end comes within"),
    ("remi", "@end", " Position_60", "the end comes within"),
    ("structured", " Duration_0.12.24@end", "", "the end comes within"),
    ("structured", "@end", " TimeShift_1.0.24", "the end comes within"),
]  # fmt: skip

STRICTLY = [
    *((s, "Duration_2.0.12", "Duration_2.0.12 Program_0 Pitch_70 Velocity_3 Duration_1.0.24", "a Program differs")
      for s in ("remi", "tsd")),
    ("midilike", "NoteOff_64", "Program_0 NoteOff_64", "a Program differs"),
    *((s, "Pitch_64", "Pitch_59", "pitches rise") for s in ("remi", "tsd", "structured")),
    ("midilike", "_64", "_59", "pitches rise"),
    *((s, "Pitch_64", "Pitch_60", "no note begins twice") for s in ("remi", "tsd", "structured")),
    ("midilike", "_64", "_60", "no note begins twice"),
    *((s, "Program_0 Pitch_60", "Program_-1 PitchDrum_20 Velocity_3 Duration_1.0.24 Program_0 Pitch_60",
       "programs rise") for s in ("remi", "tsd")),
    ("structured", "Program_0 Pitch_64", "Program_-1 PitchDrum_20 Velocity_3 Duration_1.0.24 "
     "TimeShift_0.0.1 Program_0 Pitch_64", "programs rise"),
    ("midilike", "@all", "Program_-1 DrumOn_36 Velocity_3 Program_0 NoteOn_70 Velocity_3 TimeShift_1.0.24 "
     "NoteOff_70 Program_-1 DrumOff_36", "programs rise"),
    ("remi", "Program_-1", "Program_7 Pitch_3 Velocity_3 Duration_1.0.24 Program_6 Pitch_3 Velocity_3 Duration_1.0.24 "
     "Program_-1", "programs rise"),
    ("midilike", "Program_0 NoteOff_60 NoteOn_60", "Program_0 NoteOn_59 Velocity_3 NoteOff_60 NoteOn_60",
     "NoteOffs of a program come before"),
    *((s, "Duration_1.0.24", "Duration_1.1.24", "while the same still sounds") for s in ("remi", "tsd", "structured")),
    *((s, "Duration_1.0.24", "Duration_3.0.12", "while the same still sounds") for s in ("remi", "tsd", "structured")),
    ("midilike", "NoteOff_60 NoteOn_60", "NoteOn_60", "while the same still sounds"),
    *((s, "@all", SIXTEEN[s], "at most 15 melodic programs") for s in RIGHT),
    *((s, "Tempo_60.0", "Tempo_120.0", "a Tempo differs") for s in METRED),
    *((s, "TimeSig_6/8", "TimeSig_3/4", "a TimeSig differs") for s in ("tsd", "midilike")),
    ("tsd", "TimeShift_2.0.12", "TimeShift_1.0.24", "on a bar line"),
    ("midilike", "NoteOff_64 TimeShift_1.0.24", "NoteOff_64 TimeShift_0.12.24", "on a bar line"),
    ("tsd", "TimeSig_3/4", "TimeShift_2.0.12 TimeSig_3/4", "on a bar line"),
]  # fmt: skip


def mutated(scheme: str, old: str, new: str) -> list[str]:
    """The right sequence with the first `old` replaced, a bare value everywhere; x@end: the x it ends with; @all."""
    right = RIGHT[scheme]
    if old == "@all":
        return new.split()
    if old.endswith("@end"):
        if scheme == "remi" and not old.startswith(" TimeSig"):
            right = right.removesuffix(" Bar_None TimeSig_6/8")
        assert right.endswith(old.removesuffix("@end"))
        return (right.removesuffix(old.removesuffix("@end")) + new).split()
    assert old in right
    return right.replace(old, new, -1 if old.startswith("_") else 1).split()


@pytest.mark.parametrize(("scheme", "old", "new", "reason"), [*ALWAYS, *STRICTLY])
def test_mistakes_are_found_where_they_are(scheme: str, old: str, new: str, reason: str) -> None:
    tokens = mutated(scheme, old, new)
    with pytest.raises(IllFormed) as caught:
        replay(scheme, tokens)
    assert reason in caught.value.reason
    at = caught.value.position
    assert f"token {at}: " in str(caught.value)
    replay(scheme, tokens[:at], ended=False)  # all is well before it
    if at < len(tokens):
        with pytest.raises(IllFormed):
            replay(scheme, tokens[: at + 1], ended=False)


@pytest.mark.parametrize(("scheme", "old", "new", "reason"), ALWAYS)
def test_most_mistakes_are_no_matter_of_strictness(scheme: str, old: str, new: str, reason: str) -> None:
    with pytest.raises(IllFormed, match=reason):
        replay(scheme, mutated(scheme, old, new), strict=False)


@pytest.mark.parametrize(("scheme", "old", "new", "reason"), STRICTLY)
def test_what_real_files_may_do_is_counted(scheme: str, old: str, new: str, reason: str) -> None:
    played = replay(scheme, mutated(scheme, old, new), strict=False, ended=False)
    assert reason in played.breaches[0].reason


@pytest.mark.parametrize(
    ("scheme", "old", "new"),
    [
        ("remi", "Position_24", "Position_71"),
        ("remi", "Position_48", "Position_143"),
        ("remi", "Bar_None TimeSig_6/8", "Bar_None TimeSig_3/4 Bar_None TimeSig_6/8"),
        ("tsd", "TimeShift_2.0.12", "TimeShift_1.0.24 TimeShift_1.0.24"),
        ("tsd", "TimeShift_2.0.12", "TimeShift_5.0.12"),
        ("tsd", "TimeSig_3/4", "TimeShift_4.0.12 TimeSig_3/4"),
        ("midilike", "@all", NOTE_OFFS.format(64, 60, 64, 60)),
        ("midilike", "@all", NOTE_OFFS.format(64, 60, 60, 64)),  # the ends of notes have no order
        ("midilike", "@all", NOTE_OFFS.format(60, 64, 60, 64)),
        ("structured", "TimeShift_1.0.24", "TimeShift_64.0.2"),
        *((scheme, "@all", SIXTEEN[scheme].replace("_15", "_14").split("Program_14")[0]) for scheme in ("remi", "tsd")),
    ],
)
def test_what_only_looks_wrong_is_accepted(scheme: str, old: str, new: str) -> None:
    assert replay(scheme, mutated(scheme, old, new)).notes


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_token_of_real_music_can_be_dropped_or_doubled_unnoticed(
    scheme: str, cleaned: dict[str, list[ScoreTick]]
) -> None:
    tokenizer = tokenizer_of(scheme)
    rng = random.Random(5)
    rejected = 0
    for score in sorted(cleaned[scheme], key=lambda score: score.note_num())[:9:3]:
        tokens = spelled(tokenizer, tokenizer.encode(score))
        right = replay(scheme, tokens)
        for at in rng.sample(range(len(tokens)), 30):
            for times in (0, 2):
                try:
                    assert replay(scheme, tokens[:at] + tokens[at : at + 1] * times + tokens[at + 1 :]) != right
                except IllFormed:
                    rejected += 1
    assert rejected > 100


@pytest.mark.parametrize("scheme", SCHEMES)
def test_written_files_are_read_alike_by_three_libraries(
    scheme: str, cleaned: dict[str, list[ScoreTick]], tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(scheme)
    for decoded in cleaned[scheme]:
        tokenizer.write(decoded, tmp_path / "piece.mid")
        read = read_back(tmp_path / "piece.mid")
        assert read["symusic"] == read["mido"] == read["pretty_midi"]
        assert read["symusic"] == sorted(
            FileNote(note.time, note.end, note.pitch, note.velocity, track.program, track.is_drum)
            for track in decoded.tracks
            for note in track.notes
        )


def test_overlapping_notes_are_where_the_libraries_differ(tmp_path: Path) -> None:
    score = ScoreTick(96)
    track = TrackTick()
    track.notes.append(NoteTick(0, 96, 60, 64))
    track.notes.append(NoteTick(48, 96, 60, 64))
    score.tracks.append(track)
    midi.write_midi(score, tmp_path / "piece.mid")
    read = read_back(tmp_path / "piece.mid")
    assert read["symusic"] == read["mido"] != read["pretty_midi"]
