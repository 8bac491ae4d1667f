"""A piece of music -> the numbers and histograms by which the field compares sets of pieces.

    found = measured(score)            # of the whole piece, or with bars=16 of so many from its first note on
    found.values["polyphony"]          # each of MEASURES; nan where the piece has nothing to measure
    found.histograms["interval"]       # each of HISTOGRAMS, of sum 1; None likewise

Times are counted from the bar line before the first note to the end of the last. Notes are compared in STEPS steps a
quarter note. "Pitched" leaves drums out; all else takes them for notes like others.

    pitch_class_entropy  - sum p log2 p, p the shares of the 12 pitch classes in the pitched notes                [1, 2]
    scale_consistency    the largest share of the pitched notes that lie in one of the 24 major and natural minor
                         scales (of 12 different sets of pitch classes)                                           [2, 3]
    groove_consistency   1 - mean of d(g, g') / Q over neighbouring bars of equal length: g says at which of the Q
                         steps of a bar a note begins, d is the Hamming distance; 64 steps in 4/4                 [1, 2]
    note_density         notes / bars
    polyphony            mean number of different pitches that sound at a time at which any does; pitched            [2]
    polyphony_rate       share of the time at which at least two different pitches sound; pitched                 [2, 3]
    pitch_range          highest - lowest pitch, in semitones; pitched                                            [2, 4]
    empty_beat_rate      share of the quarter notes in which nothing sounds                                          [2]
    repetition           share of the bars with notes that hold the same notes (steps in the bar, pitches,
                         instruments) as an earlier bar of the piece, however far back

    pitch_class          pitched notes by pitch class, from C                                                        [4]
    degree               the same above the tonic of the key that fits best (controls.py); none where no key fits
    interval             from one onset to the next of one instrument, highest note to highest note, in semitones;
                         an octave and more is one class; pitched
    duration             note lengths by the nearest of DURATIONS, in ratio; pitched                                 [4]

In [1] entropy is that of 1 and 4 bars, and for groove all pairs of bars are compared; in [2] both are as here, on the
grid of the file. Entropy and repetition grow with the length of a piece: compare the same number of bars.

Sources: [1] Wu and Yang 2020, "The Jazz Transformer on the Front Line" (ISMIR); [2] Dong, Chen, McAuley and
Berg-Kirkpatrick 2020, "MusPy" (ISMIR); [3] Mogren 2016, "C-RNN-GAN"; [4] Yang and Lerch 2020, "On the evaluation of
generative models in music" (Neural Computing and Applications 32). Repetition is ours.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from symusic.core import ScoreTick

from musicgpt.controls import MOST_BARS, Notes, fitting_keys, notes_of
from musicgpt.errors import InputError
from musicgpt.marks import DRUMS
from musicgpt.midi import BarLines

STEPS = 16

MAJOR = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1])
SCALES = np.stack([np.roll(MAJOR, tonic) for tonic in range(12)])
"""(12, 12): the natural minor scales are the same sets of pitch classes."""

DURATIONS = {
    "1/8": 1 / 8, "1/6": 1 / 6, "1/4": 1 / 4, "1/3": 1 / 3, "3/8": 3 / 8, "1/2": 1 / 2, "2/3": 2 / 3, "3/4": 3 / 4,
    "1": 1.0, "4/3": 4 / 3, "3/2": 3 / 2, "2": 2.0, "3": 3.0, "4": 4.0, "6": 6.0, "8": 8.0,
}  # fmt: skip
"""Quarter notes, by name; the first and the last stand for all that is shorter or longer."""

MEASURES = (
    "pitch_class_entropy",
    "scale_consistency",
    "groove_consistency",
    "note_density",
    "polyphony",
    "polyphony_rate",
    "pitch_range",
    "empty_beat_rate",
    "repetition",
)

HISTOGRAMS = {
    "pitch_class": tuple("C C# D D# E F F# G G# A A# B".split()),
    "degree": tuple("1 b2 2 b3 3 4 #4 5 b6 6 b7 7".split()),
    "interval": tuple(f"{i:+d}" if i else "0" for i in range(-12, 13)),
    "duration": tuple(DURATIONS),
}
"""The names of their classes."""


class Measured(NamedTuple):
    bars: int
    """Measured, of as many as there are."""
    all_bars: int
    values: dict[str, float]
    histograms: dict[str, np.ndarray | None]


def measured(score: ScoreTick, bars: int | None = None) -> Measured:
    """Of a score with notes; with `bars`, of what begins in so many bars from that of its first note on.

    Raises:
        InputError: more bars than a piece can have.
    """
    notes, lines = notes_of(score), BarLines(score)
    first = lines.bar_at(int(notes["onset"][0]))
    end = max(int(notes["end"].max()) - 1, int(notes["onset"][-1]))
    there = lines.bar_at(end) - first + 1
    if there > MOST_BARS:
        raise InputError(f"the piece has {there:,} bars; expected at most {MOST_BARS:,}")
    count = there if bars is None else min(bars, there)
    starts = np.array([lines.begin(bar) for bar in range(first, first + count + 1)])
    notes = {name: column[notes["onset"] < starts[-1]] for name, column in notes.items()}
    pitched = {name: column[notes["rank"] != DRUMS] for name, column in notes.items()}
    histograms = _histograms(pitched, score.ticks_per_quarter)  # of lengths as they are
    for part in (notes, pitched):
        part["end"] = np.minimum(part["end"], starts[-1])
    classes = histograms["pitch_class"]
    groove, repetition = _bar_by_bar(notes, starts, score.ticks_per_quarter)
    polyphony, rate = _polyphony(pitched, int(notes["end"].max() - starts[0]))
    low_to_high = int(pitched["pitch"].max() - pitched["pitch"].min()) if classes is not None else math.nan
    values = {
        "pitch_class_entropy": math.nan if classes is None else _entropy(classes),
        "scale_consistency": math.nan if classes is None else float((SCALES @ classes).max()),
        "groove_consistency": groove,
        "note_density": len(notes["onset"]) / count,
        "polyphony": polyphony,
        "polyphony_rate": rate,
        "pitch_range": float(low_to_high),
        "empty_beat_rate": _empty_beat_rate(notes, int(starts[0]), score.ticks_per_quarter),
        "repetition": repetition,
    }
    return Measured(count, there, values, histograms)


def _entropy(shares: np.ndarray) -> float:
    """In bits."""
    positive = shares[shares > 0]
    return float(-(positive * np.log2(positive)).sum()) + 0.0  # no -0.0


def _histograms(pitched: Notes, per_quarter: int) -> dict[str, np.ndarray | None]:
    classes, length = pitched["pitch"] % 12, np.maximum(pitched["end"] - pitched["onset"], 1)
    (key,) = fitting_keys(np.bincount(classes, weights=length, minlength=12)[None])
    order = np.lexsort((pitched["pitch"], pitched["onset"], pitched["rank"]))
    onset, pitch, rank = (pitched[name][order] for name in ("onset", "pitch", "rank"))
    top = np.flatnonzero((np.diff(onset, append=-1) != 0) | (np.diff(rank, append=-1) != 0))
    steps = np.diff(pitch[top])[np.diff(rank[top]) == 0]
    away = np.abs(np.log(length / per_quarter)[:, None] - np.log(list(DURATIONS.values())))
    return {
        "pitch_class": _shares(classes, 12),
        "degree": None if key is None else _shares((classes - key) % 12, 12),
        "interval": _shares(np.clip(steps, -12, 12) + 12, 25),
        "duration": _shares(away.argmin(axis=1), len(DURATIONS)),
    }


def _shares(values: np.ndarray, classes: int) -> np.ndarray | None:
    return np.bincount(values, minlength=classes) / len(values) if len(values) else None


def _bar_by_bar(notes: Notes, starts: np.ndarray, per_quarter: int) -> tuple[float, float]:
    """Groove consistency and repetition."""
    steps = np.rint(starts * (STEPS / per_quarter)).astype(np.int64)
    onset = np.rint(notes["onset"] * (STEPS / per_quarter)).astype(np.int64)
    onset = np.minimum(onset, steps[-1] - 1)  # what is rounded to the end of all belongs to the last bar
    bar = np.searchsorted(steps, onset, side="right") - 1
    place = onset - steps[bar]

    Q = np.diff(steps)
    cells = np.unique(bar * (Q.max() + 1) + place)
    begins = np.bincount(cells // (Q.max() + 1), minlength=len(Q))
    in_both = cells[np.isin(cells + Q.max() + 1, cells)] // (Q.max() + 1)
    shared = np.bincount(in_both, minlength=len(Q))[:-1]
    alike = (Q[1:] == Q[:-1]) & (Q[1:] > 0)
    differ = (begins[1:] + begins[:-1] - 2 * shared)[alike] / Q[1:][alike]
    groove = 1 - float(differ.mean()) if len(differ) else math.nan

    rows = np.stack([bar, place, notes["pitch"], notes["rank"]], axis=1)
    rows = rows[np.lexsort(rows.T[::-1])]
    edges = np.searchsorted(rows[:, 0], np.arange(len(Q) + 1)).tolist()
    bars = [rows[a:b, 1:].tobytes() for a, b in pairwise(edges) if a < b]
    return groove, 1 - len(set(bars)) / len(bars)


def _polyphony(pitched: Notes, ticks: int) -> tuple[float, float]:
    """Polyphony, and its rate of so many ticks."""
    order = np.lexsort((pitched["onset"], pitched["pitch"]))
    onset, end, pitch = (pitched[name][order] for name in ("onset", "end", "pitch"))
    apart = pitch * (int(end.max(initial=0)) + 1)  # so that the pitches come one behind the other
    reached = np.maximum.accumulate(np.concatenate(([0], (end + apart)[:-1])))
    onset = np.maximum(onset, reached - apart)  # the part of each note in which no note before it has its pitch sound
    sounds = end > onset
    times = np.concatenate((onset[sounds], end[sounds]))
    if not len(times):
        return math.nan, math.nan
    by_time = np.argsort(times)
    sounding = np.cumsum(np.where(by_time < len(times) // 2, 1, -1))[:-1]
    spans = np.diff(times[by_time])
    return float((sounding @ spans) / spans[sounding > 0].sum()), float(spans[sounding > 1].sum() / ticks)


def _empty_beat_rate(notes: Notes, begin: int, per_quarter: int) -> float:
    first = (notes["onset"] - begin) // per_quarter
    last = (np.maximum(notes["end"] - 1, notes["onset"]) - begin) // per_quarter
    beats = int(last.max()) + 1
    sounding = np.cumsum(np.bincount(first, minlength=beats + 1) - np.bincount(last + 1, minlength=beats + 1))
    return float((sounding[:beats] == 0).mean())
