"""What can be asked for in words, measured: a Score -> a few numbers for every four bars, and bins of them.

    segments = measured(score)                  # of each instrument and of all together
    bins = Bins.learn(many)                     # what is low and what is high, for each family of instruments
    levels = bins.levels(segments[0])           # what marks say, what is asked for, what a result is compared by

Of each instrument, over the notes that begin in the segment: density (notes a bar), polyphony (how many sound while
any does; notes that ring into the segment count), note length (median, in quarter notes) and register (median pitch;
drums have none). Of all together: repetition (share of the bars with notes in them that are, in onsets, pitches and
instruments, the same as one of the 16 bars before), key (none where nothing fits) and how many bars are left.

Source: key profiles of Krumhansl and Kessler 1982, fitted by correlation as in Krumhansl 1990.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from symusic.core import ScoreTick

from musicgpt import midi
from musicgpt.errors import InputError, TokenizerError
from musicgpt.files import read_json, write_json
from musicgpt.marks import DRUMS, LEVELS, MOST_BARS_LEFT, PER_INSTRUMENT, SEGMENT_BARS, Levels

FILE = "controls.json"

MOST_BARS = 2**17
"""A score of more is none: the last note of a broken file may be anywhere."""

REMEMBERED = 16
"""A bar is a repetition of one at most so many bars before."""

PROFILES = (
    (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
)
"""How well each pitch class fits C major and C minor."""

LEAST_FIT = 0.6
"""A correlation below it: no key."""

FAMILIES = (
    "piano", "chromatic percussion", "organ", "guitar", "bass", "strings", "ensemble", "brass", "reed", "pipe",
    "synth lead", "synth pad", "synth effects", "ethnic", "percussive", "sound effects", "drums",
)  # fmt: skip
"""Of General MIDI, eight programs each; and the drums."""

ANY = "any"
"""Stands for a family of which too little was seen."""

DIGITS = 3
"""Behind the point: values that differ by less are equal."""

ENOUGH = 100
"""Segments of a family before it has bins of its own."""


@dataclass(frozen=True)
class Segment:
    bars: tuple[int, int]
    """The first and the last, counted from 1."""
    begin: int
    """Its first tick."""
    values: dict[tuple[int | None, str], float]
    """(program, drums 128, or None for all together; control) -> value; the key is an index of `KEYS`."""


def measured(score: ScoreTick, begin: int = 0, end: int | None = None) -> list[Segment]:
    """The segments from the bar line at the tick `begin` to the bar of the tick before `end` (of the last note).

    The end for `bars_left` is that of the last note. A segment without notes, behind it, has no values.
    """
    notes = notes_of(score)
    lines = midi.BarLines(score)
    sounds = max(begin, int(notes["end"].max(initial=0)) - 1)
    first, last = lines.bar_at(begin), lines.bar_at(sounds if end is None else max(begin, end - 1))
    if last - first >= MOST_BARS:
        return []
    starts = np.array([lines.begin(bar) for bar in range(1, last + 2)])
    notes = {name: column[notes["onset"] < starts[-1]] for name, column in notes.items()}
    bounds = np.append(np.maximum(starts[first - 1 : -1 : SEGMENT_BARS], begin), starts[-1])
    segments = []
    for i, tick in enumerate(bounds[:-1].tolist()):
        left = min(last, lines.bar_at(sounds)) - first + 1 - i * SEGMENT_BARS
        bars = (1 + i * SEGMENT_BARS, min((i + 1) * SEGMENT_BARS, last - first + 1))
        segments.append(Segment(bars, tick, {(None, "bars_left"): float(left)} if left > 0 else {}))
    _measure_instruments(segments, notes, bounds, score.ticks_per_quarter)
    _measure_keys(segments, notes, bounds)
    _measure_repetition(segments, notes, starts, first)
    return segments


Notes = dict[str, np.ndarray]
"""onset, end, pitch, rank: (N,) int64, by onset."""


def notes_of(score: ScoreTick) -> Notes:
    """All notes of a score; `rank` is the program, DRUMS for drums."""
    rows = [np.zeros((4, 0), dtype=np.int64)]
    for track in score.tracks:
        notes = track.notes.numpy()
        time = notes["time"].astype(np.int64)
        rank = np.full(len(time), midi.rank_of(track))
        rows.append(np.stack([time, time + notes["duration"], notes["pitch"], rank]))
    table = np.concatenate(rows, axis=1)
    order = np.lexsort(table[[1, 3, 2, 0]])
    return dict(zip(("onset", "end", "pitch", "rank"), table[:, order], strict=True))


def _pieces(notes: Notes, bounds: np.ndarray) -> Notes:
    """Notes cut at the bounds: the part of each in every segment, and which that is."""
    begins = np.searchsorted(bounds, notes["onset"], side="right") - 1
    ends = np.searchsorted(bounds, np.maximum(notes["end"], notes["onset"] + 1), side="left")
    counts = np.minimum(ends, len(bounds) - 1) - np.maximum(begins, 0)
    note = np.repeat(np.arange(len(begins)), np.maximum(counts, 0))
    within = np.arange(len(note)) - np.searchsorted(note, note)
    segment = np.maximum(begins, 0)[note] + within
    return {
        "segment": segment,
        "onset": np.maximum(notes["onset"][note], bounds[segment]),
        "end": np.minimum(notes["end"][note], bounds[segment + 1]),
        "pitch": notes["pitch"][note],
        "rank": notes["rank"][note],
    }


def _measure_instruments(segments: list[Segment], notes: Notes, bounds: np.ndarray, per_quarter: int) -> None:
    heard = _pieces(notes, bounds)
    sounding = _mean_sounding(heard)
    new = {name: column[notes["onset"] >= bounds[0]] for name, column in notes.items()}
    segment = np.searchsorted(bounds, new["onset"], side="right") - 1
    key = segment * (DRUMS + 1) + new["rank"]
    groups, counts = np.unique(key, return_counts=True)
    lengths, pitches = (_medians(key, counts, values) for values in (new["end"] - new["onset"], new["pitch"]))
    for group, count, length, pitch in zip(groups.tolist(), counts.tolist(), lengths, pitches, strict=True):
        at, rank = divmod(group, DRUMS + 1)
        first, last = segments[at].bars
        found = {
            "density": count / (last - first + 1),
            "polyphony": sounding[group],
            "note_length": length / per_quarter,
        }
        if rank != DRUMS:
            found["register"] = pitch
        segments[at].values.update({(rank, control): value for control, value in found.items()})


def _medians(key: np.ndarray, counts: np.ndarray, values: np.ndarray) -> list[float]:
    """Of each group, by rising key."""
    values = values[np.lexsort((values, key))]
    starts = np.cumsum(counts) - counts
    medians: list[float] = ((values[starts + (counts - 1) // 2] + values[starts + counts // 2]) / 2).tolist()
    return medians


def _mean_sounding(pieces: Notes) -> dict[int, float]:
    """Key of a segment and a program -> how many notes sound at once, where any does."""
    key = pieces["segment"] * (DRUMS + 1) + pieces["rank"]
    order = np.lexsort((pieces["onset"], key))
    key, onset, end = key[order], pieces["onset"][order], pieces["end"][order]
    groups, starts = np.unique(key, return_index=True)
    if not len(groups):
        return {}
    apart = np.searchsorted(groups, key) * (int(end.max()) + 1)  # so that the groups come one behind the other
    reached = np.maximum.accumulate(end + apart)
    before = np.concatenate(([0], reached[:-1]))
    alone = np.maximum(0, end + apart - np.maximum(onset + apart, before))  # what no note before it has sounded
    total, any_sounds = np.add.reduceat(end - onset, starts), np.add.reduceat(alone, starts)
    return dict(zip(groups.tolist(), (total / np.maximum(any_sounds, 1)).tolist(), strict=True))


def _rotated() -> np.ndarray:
    """(24, 12): the profiles of all keys, each of mean 0 and length 1."""
    profiles = np.array([np.roll(profile, tonic) for profile in PROFILES for tonic in range(12)])
    profiles -= profiles.mean(axis=1, keepdims=True)
    normed: np.ndarray = profiles / np.linalg.norm(profiles, axis=1, keepdims=True)
    return normed


ROTATED = _rotated()


def _measure_keys(segments: list[Segment], notes: Notes, bounds: np.ndarray) -> None:
    pieces = _pieces({name: column[notes["rank"] != DRUMS] for name, column in notes.items()}, bounds)
    heard = np.zeros((len(segments), 12))
    np.add.at(heard, (pieces["segment"], pieces["pitch"] % 12), pieces["end"] - pieces["onset"])
    for segment, key in zip(segments, fitting_keys(heard), strict=True):
        if key is not None:
            segment.values[None, "key"] = float(key)


def fitting_keys(heard: np.ndarray) -> list[int | None]:
    """(N, 12) how much there is of each pitch class -> the key that fits each best, an index of `KEYS`, if one does."""
    heard = heard - heard.mean(axis=1, keepdims=True)
    fits = heard @ ROTATED.T / np.maximum(np.linalg.norm(heard, axis=1, keepdims=True), 1e-9)
    return [int(fit.argmax()) if fit.max() >= LEAST_FIT else None for fit in fits]


def _measure_repetition(segments: list[Segment], notes: Notes, starts: np.ndarray, first: int) -> None:
    bar = np.searchsorted(starts, notes["onset"], side="right") - 1
    rows = np.stack([notes["onset"] - starts[bar], notes["pitch"], notes["rank"]], axis=1)
    edges = np.searchsorted(bar, np.arange(len(starts)))
    played: dict[int, list[bool]] = defaultdict(list)
    last: dict[bytes, int] = {}
    for number in range(len(starts) - 1):
        content = rows[edges[number] : edges[number + 1]].tobytes()
        if content:
            if number >= first - 1:
                again = content in last and number - last[content] <= REMEMBERED
                played[(number - first + 1) // SEGMENT_BARS].append(again)
            last[content] = number
    for at, repeats in played.items():
        segments[at].values[None, "repetition"] = sum(repeats) / len(repeats)


class Bin(NamedTuple):
    """One control of a family of instruments."""

    edges: list[float]
    """The four values up to which, and with which, a level goes; the last level has no end."""
    levels: list[int]
    """Those that there were."""


class Bins:
    """Where the levels of each family of instruments part: a fifth of what was measured is of each, as far as can be.

    Equal values are of one level, that in the middle of them: where nearly all are the same, that is medium.
    """

    def __init__(self, families: dict[str, dict[str, Bin]]) -> None:
        self.families = families

    @classmethod
    def learn(cls, documents: Iterable[list[Segment]]) -> Bins:
        found: dict[str, dict[str, list[float]]] = {
            name: {control: [] for control in PER_INSTRUMENT} for name in (ANY, *FAMILIES)
        }
        for segment in (segment for segments in documents for segment in segments):
            for (rank, control), value in segment.values.items():
                if rank is not None:
                    for name in (ANY, FAMILIES[rank // 8]):
                        found[name][control].append(value)
        return cls(
            {
                name: {control: _parted(values) for control, values in controls.items()}
                for name, controls in found.items()
                if name == ANY or len(controls["density"]) >= ENOUGH
            }
        )

    def levels(self, segment: Segment) -> Levels:
        return {key: self._level(*key, value) for key, value in segment.values.items()}

    def _level(self, rank: int | None, control: str, value: float) -> int:
        if rank is not None:
            return bisect_left(self._bin(rank, control).edges, round(value, DIGITS))
        if control == "repetition":
            return round(value * (len(LEVELS) - 1))
        return min(int(value), MOST_BARS_LEFT) - 1 if control == "bars_left" else int(value)

    def _bin(self, rank: int, control: str) -> Bin:
        return self.families.get(FAMILIES[rank // 8], self.families[ANY])[control]

    def there(self, rank: int, control: str) -> list[int]:
        """The levels of an instrument's control that there were in training."""
        return self._bin(rank, control).levels

    def nearest(self, levels: Levels) -> Levels:
        """The nearest that there were in training: a mark that was never there says nothing."""
        return {
            (rank, control): level
            if rank is None
            else min(self.there(rank, control), key=lambda there: abs(there - level))
            for (rank, control), level in levels.items()
        }

    def save(self, directory: Path) -> None:
        write_json(
            directory / FILE,
            {name: {control: bin._asdict() for control, bin in bins.items()} for name, bins in self.families.items()},
        )

    @classmethod
    def load(cls, directory: Path) -> Bins:
        """Raises: TokenizerError: no such file there, or not what `save` writes."""
        path = directory / FILE
        try:
            values: dict[str, Any] = read_json(path)
        except InputError as error:
            raise TokenizerError(f"{error}; it says what is low and what is high for this tokenizer's marks") from error
        if ANY not in values or not values.keys() <= {ANY, *FAMILIES} or not all(map(_are_bins, values.values())):
            raise TokenizerError(
                f"{path} is not what prepare --controls writes: expected for each family of instruments and "
                f"{', '.join(PER_INSTRUMENT)} {len(LEVELS) - 1} rising edges and the levels there were"
            )
        return cls({name: {control: Bin(**bin) for control, bin in bins.items()} for name, bins in values.items()})


def _parted(values: list[float]) -> Bin:
    if not values:  # drums have no register
        return Bin([0.0] * (len(LEVELS) - 1), list(range(len(LEVELS))))
    found, counts = np.unique(np.round(values, DIGITS), return_counts=True)
    middles = (np.cumsum(counts) - counts / 2) / len(values)
    levels = (middles * len(LEVELS)).astype(int)
    between = np.concatenate((found[:1] - 10.0**-DIGITS, (found[1:] + found[:-1]) / 2, found[-1:]))
    edges = between[np.searchsorted(levels, np.arange(len(LEVELS) - 1), side="right")]
    return Bin([round(float(edge), DIGITS) for edge in edges], sorted(set(levels.tolist())))


def _are_bins(controls: Any) -> bool:
    if not isinstance(controls, dict) or controls.keys() != set(PER_INSTRUMENT):
        return False
    return all(
        isinstance(bin, dict)
        and bin.keys() == {"edges", "levels"}
        and all(isinstance(values, list) for values in bin.values())
        and all(type(value) in (int, float) and abs(value) < 1e9 for values in bin.values() for value in values)
        and bin["edges"] == sorted(bin["edges"])
        and len(bin["edges"]) == len(LEVELS) - 1
        and 0 < len(bin["levels"]) <= len(LEVELS)
        and set(bin["levels"]) <= set(range(len(LEVELS)))
        and all(type(level) is int for level in bin["levels"])
        for bin in controls.values()
    )


def distance(asked: Iterable[Levels], made: Iterable[Levels]) -> float:
    """How far results are from what was asked, in levels: the mean over all controls, from 0 to 4.

    Another key, and what is not there to be measured, is as far as can be.
    """
    far = len(LEVELS) - 1
    apart = [
        far if key not in there or (key[1] == "key" and there[key] != level) else min(far, abs(there[key] - level))
        for levels, there in zip(asked, made, strict=True)
        for key, level in levels.items()
    ]
    return sum(apart) / max(1, len(apart))
