"""What is measured of pieces: values worked out by hand on a few bars, and laws on real ones."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from symusic.core import NoteTick, NoteTickList, ScoreTick, TimeSignatureTick, TimeSignatureTickList, TrackTick

from musicgpt.metrics import DURATIONS, HISTOGRAMS, MEASURES, measured
from musicgpt.midi import BarLines, read_scores, transposed

Q = 480

Notes = list[tuple[float, float, int]]
"""Onset and duration in quarter notes, pitch."""


def score(metres: tuple[tuple[int, int, int], ...] = ((0, 4, 4),), Q: int = Q, **tracks: Notes) -> ScoreTick:
    """p0=…, p40=… for programs, drums=…; metres as (quarter note, numerator, denominator)."""
    made = ScoreTick(Q)
    made.time_signatures = TimeSignatureTickList([TimeSignatureTick(at * Q, n, unit) for at, n, unit in metres])
    for name, notes in tracks.items():
        track = TrackTick("", 0 if name == "drums" else int(name[1:]), name == "drums")
        track.notes = NoteTickList([NoteTick(round(t * Q), round(d * Q), pitch, 64) for t, d, pitch in notes])
        made.tracks.append(track)
    return made


def shares(made: ScoreTick, name: str, bars: int | None = None) -> dict[str, float]:
    """The classes of a histogram that are not empty."""
    found = measured(made, bars).histograms[name]
    assert found is not None
    assert found.sum() == pytest.approx(1)
    return {label: share for label, share in zip(HISTOGRAMS[name], found.tolist(), strict=True) if share}


TRIAD = [(0, 1, 60), (1, 1, 64), (2, 2, 67)]
TWICE: Notes = TRIAD + [(t + 4, d, pitch) for t, d, pitch in TRIAD]


def test_a_triad_played_twice() -> None:
    made = score(p0=TWICE)
    found = measured(made)
    assert (found.bars, found.all_bars) == (2, 2)
    assert found.values == {
        "pitch_class_entropy": pytest.approx(math.log2(3)),
        "scale_consistency": pytest.approx(1),
        "groove_consistency": 1,
        "note_density": 3,
        "polyphony": 1,
        "polyphony_rate": 0,
        "pitch_range": 7,
        "empty_beat_rate": 0,
        "repetition": 1 / 2,
    }
    assert shares(made, "interval") == {"-7": 1 / 5, "+3": 2 / 5, "+4": 2 / 5}
    assert shares(made, "duration") == pytest.approx({"1": 2 / 3, "2": 1 / 3})
    assert shares(made, "pitch_class") == pytest.approx({"C": 1 / 3, "E": 1 / 3, "G": 1 / 3})


def test_every_pitch_class_once_and_one_alone() -> None:
    chromatic = measured(score(p0=[(i, 1, 60 + i) for i in range(12)])).values
    assert chromatic["pitch_class_entropy"] == pytest.approx(math.log2(12))
    assert chromatic["scale_consistency"] == pytest.approx(7 / 12)
    alone = measured(score(p0=[(i, 1, 60 + 12 * (i % 2)) for i in range(12)])).values
    assert alone["pitch_class_entropy"] == 0
    assert math.copysign(1, alone["pitch_class_entropy"]) == 1
    assert alone["scale_consistency"] == 1
    # A minor is C major, and its leading note is outside
    minor = measured(score(p0=[(i, 1, pitch) for i, pitch in enumerate((57, 59, 60, 62, 64, 65, 67, 68))])).values
    assert minor["scale_consistency"] == 7 / 8


def test_groove_is_what_neighbouring_bars_share() -> None:
    onsets = (0, 1, 2, 3, 4, 6, 8, 8.5)  # four, two and two in a bar
    made = score(p0=[(t, 0.5, 60) for t in onsets])
    assert measured(made).values["groove_consistency"] == pytest.approx(1 - (2 / 64 + 2 / 64) / 2)
    # a bar of 3/4 is not compared with one of 4/4, and has 48 steps
    made = score(((0, 4, 4), (4, 3, 4)), p0=[(t, 0.5, 60) for t in (0, 4, 5, 7)])
    assert measured(made).values["groove_consistency"] == pytest.approx(1 - 1 / 48)
    assert math.isnan(measured(score(p0=[(0, 1, 60)])).values["groove_consistency"])


def test_what_is_played_a_little_early_belongs_to_the_bar_it_is_meant_for() -> None:
    early: Notes = [(0, 1, 60), (3.99, 1, 60), (7.99, 1, 60), (11.99, 0.01, 62)]
    found = measured(score(p0=early[:3])).values
    assert found["groove_consistency"] == 1
    assert found["repetition"] == pytest.approx(2 / 3)
    assert measured(score(p0=early)).bars == 3  # the last is at the end of all: there is no bar behind it
    assert measured(score(p0=early)).values["groove_consistency"] == pytest.approx(1 - (0 + 1 / 64) / 2)


def test_polyphony_counts_pitches_while_any_sounds() -> None:
    # 60 from 0 to 2, twice at once; 64 from 1 to 3; silence; 67 from 6 to 8
    found = measured(score(p0=[(0, 2, 60), (1, 2, 64), (6, 2, 67)], p40=[(1, 1, 60)])).values
    assert found["polyphony"] == pytest.approx(6 / 5)
    assert found["polyphony_rate"] == pytest.approx(1 / 8)
    assert found["empty_beat_rate"] == pytest.approx(3 / 8)
    assert found["note_density"] == 2


def test_drums_are_notes_without_pitch() -> None:
    kit: Notes = [(t, 0.25, 36 + 6 * (t % 2)) for t in range(8)]
    alone = measured(score(drums=kit))
    missing = {name for name, value in alone.values.items() if math.isnan(value)}
    assert missing == {"pitch_class_entropy", "scale_consistency", "polyphony", "polyphony_rate", "pitch_range"}
    assert set(alone.histograms.values()) == {None}
    assert alone.values["note_density"] == 4
    assert alone.values["repetition"] == 1 / 2
    both, piano = measured(score(drums=kit, p0=TWICE)), measured(score(p0=TWICE))
    for name in missing:
        assert both.values[name] == piano.values[name]
    assert both.values["note_density"] == 7


def test_repetition_knows_instruments_and_any_distance() -> None:
    line: Notes = [(0, 4, 60), (4, 4, 62), (8, 4, 60)]
    assert measured(score(p0=line)).values["repetition"] == pytest.approx(1 / 3)
    assert measured(score(p0=line[:2], p40=line[2:])).values["repetition"] == 0
    # an empty bar is no bar that repeats
    assert measured(score(p0=[(0, 4, 60), (12, 4, 60)])).values["repetition"] == 1 / 2


def test_the_first_bars_are_those_from_the_first_note_on() -> None:
    made = score(p0=[(8, 6, 60), (9, 1, 64), (16, 1, 80), (20, 1, 81)])
    found = measured(made, 2)
    assert (found.bars, found.all_bars) == (2, 4)
    assert found.values["note_density"] == 1
    assert found.values["pitch_range"] == 4
    assert found.values["polyphony"] == pytest.approx(7 / 6)
    assert found.values["empty_beat_rate"] == 0  # the last two beats of the second bar have nothing behind them
    first = measured(made, 1)
    assert first.values["polyphony"] == pytest.approx(5 / 4)  # the long note is cut at the bar line
    assert shares(made, "duration", 1) == {"1": 1 / 2, "6": 1 / 2}  # and counted as it is
    assert measured(made, 9).values == measured(made).values


def test_intervals_go_from_highest_note_to_highest_note_of_one_instrument() -> None:
    chords: Notes = [(0, 1, 60), (0, 1, 67), (1, 1, 62), (1, 1, 69), (2, 1, 40), (3, 1, 60)]
    made = score(p0=chords, p40=[(0.5, 1, 30), (1.5, 1, 31)], drums=[(0.25, 1, 99)])
    assert shares(made, "interval") == {"+2": 1 / 4, "-12": 1 / 4, "+12": 1 / 4, "+1": 1 / 4}


def test_note_lengths_go_to_the_nearest_value_in_ratio() -> None:
    for name, quarters in DURATIONS.items():
        for factor in (0.98, 1.0, 1.02):
            assert shares(score(p0=[(0, quarters * factor, 60)]), "duration") == {name: 1}
    assert shares(score(p0=[(0, 0, 60), (1, 100, 60)]), "duration") == {"1/8": 1 / 2, "8": 1 / 2}


def test_in_another_key_only_the_pitch_classes_differ(corpora: list[Path]) -> None:
    checked = 0
    for path in corpora:
        made = read_scores(path)[0][0]
        moved = transposed(made, 5)
        if moved is None:
            continue
        here, there = measured(made), measured(moved)
        assert here.values == pytest.approx(there.values, nan_ok=True)
        for name, before in here.histograms.items():
            after = there.histograms[name]
            if before is None or after is None:
                assert before is after
            else:
                assert after == pytest.approx(np.roll(before, 5) if name == "pitch_class" else before)
        checked += 1
    assert checked > 20


def test_real_pieces_against_a_count_of_every_step(corpora: list[Path]) -> None:
    """Shares, entropy, polyphony and silence as they are defined, on a grid of the ticks of the file."""
    for path in corpora[::3]:
        made = read_scores(path)[0][0]
        found, per_quarter = measured(made, 8), made.ticks_per_quarter
        assert set(found.values) == set(MEASURES)
        notes = [(note.start, note.end, note.pitch, track.is_drum) for track in made.tracks for note in track.notes]
        lines = BarLines(made)
        first = lines.bar_at(min(note[0] for note in notes))
        begin, cut = lines.begin(first), lines.begin(first + found.bars)
        notes = [(start, min(end, cut), pitch, drum) for start, end, pitch, drum in notes if start < cut]
        assert found.values["note_density"] == pytest.approx(len(notes) / found.bars)
        classes = Counter(pitch % 12 for *_, pitch, drum in notes if not drum)
        if not classes:
            continue
        total = sum(classes.values())
        entropy = -sum(count / total * math.log2(count / total) for count in classes.values())
        assert found.values["pitch_class_entropy"] == pytest.approx(entropy)
        end = max(end for _, end, *_ in notes)
        roll = np.zeros((end - begin, 128), dtype=bool)
        for start, stop, pitch, drum in notes:
            if not drum:
                roll[start - begin : stop - begin, pitch] = True
        sounding = roll.sum(axis=1)
        assert found.values["polyphony"] == pytest.approx(sounding.sum() / (sounding > 0).sum())
        assert found.values["polyphony_rate"] == pytest.approx((sounding > 1).mean())
        any_sounds = np.zeros(end - begin, dtype=bool)
        for start, stop, *_ in notes:
            any_sounds[start - begin : max(stop, start + 1) - begin] = True
        beats = [any_sounds[i : i + per_quarter].any() for i in range(0, len(any_sounds), per_quarter)]
        assert found.values["empty_beat_rate"] == pytest.approx(1 - sum(beats) / len(beats))
