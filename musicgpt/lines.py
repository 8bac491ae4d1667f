"""A score -> its lines: of all notes of one program the top and the bottom line, the same in every key as intervals.

Drums have none; velocities and the division into tracks are of no account. What looks for passages that two pieces
share (`originality.py`) compares lines.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from symusic.core import ScoreTick

from musicgpt import midi
from musicgpt.similarity import TOGETHER

STEPS = 24
"""Time steps a quarter note."""

REACH = 16
"""A note may be covered by one that began so many notes of its line before."""

RUN = 5
"""Intervals of a run, by which passages are found; with one note in eight altered, 45 % of them are as they were."""

WIDEST = 31
"""Semitones: a wider interval is taken for one of so many, so that it has six bits."""

PACES = 13
"""Kinds of rhythm: the time since the note before, against that before it, from an eighth to eight times as long."""


@dataclass(frozen=True)
class Lines:
    """The notes of lines, line by line, end to end; each array has one entry a note."""

    pitch: np.ndarray
    """int16."""
    gap: np.ndarray
    """int32: steps since the note before; of the first note of a line, since the piece began."""
    bar: np.ndarray
    """int32, from 1."""
    line: np.ndarray
    """int32: which line it is of, from 0."""

    @cached_property
    def interval(self) -> np.ndarray:
        """int32, from 0: semitones from the note before, of whatever line, and WIDEST."""
        jump = np.diff(self.pitch, prepend=self.pitch[:1])
        return np.clip(jump, -WIDEST, WIDEST).astype(np.int32) + np.int32(WIDEST)

    @cached_property
    def run(self) -> np.ndarray:
        """int32: the RUN intervals that end with a note; below 0, and all different, where its line has fewer."""
        run = np.zeros(len(self.pitch), dtype=np.int32)
        for back in range(RUN):
            run[back:] |= self.interval[: max(0, len(run) - back)] << (6 * back)
        short = np.flatnonzero(np.concatenate([np.ones(min(RUN, len(run)), bool), self.line[RUN:] != self.line[:-RUN]]))
        run[short] = -1 - short
        return run

    @cached_property
    def pace(self) -> np.ndarray:
        """int32, from 0: the gap against the one before, in half octaves of their ratio; in the middle where equal."""
        steps = np.log2(np.maximum(np.arange(256), 1)).astype(np.float32)[np.minimum(self.gap, 255)]
        change, middle = np.rint(2 * np.diff(steps, prepend=steps[:1])), PACES // 2
        kind: np.ndarray = np.clip(change, -middle, middle) + middle
        return kind.astype(np.int32)

    @cached_property
    def begins(self) -> np.ndarray:
        """Where each line begins, and the end."""
        return np.flatnonzero(np.diff(self.line, prepend=-1, append=-2))

    def time(self, i: int) -> int:
        """Steps from the beginning of the piece to a note."""
        return int(self.gap[self.begins[self.line[i]] : i + 1].sum())


def lines_of(score: ScoreTick, first: int = 1, last: int | None = None) -> Lines:
    """The lines of a piece, or of those of its bars."""
    bars = midi.BarLines(score)
    starts = np.array([bars.begin(bar) for bar in range(1, midi.last_bar(score) + 1)])
    programs = defaultdict(list)
    for track in score.tracks:
        if not track.is_drum and len(track.notes):
            programs[track.program].append(track.notes.numpy())
    columns = [[np.zeros(0, dtype=np.int64)] * 4]
    for parts in programs.values():
        time, pitch, duration = (
            np.concatenate([part[name] for part in parts]).astype(np.int64) for name in ("time", "pitch", "duration")
        )
        top, bottom = (_outline(time, pitch, duration, sign, TOGETHER * score.ticks_per_quarter) for sign in (1, -1))
        for outline in [top] if np.array_equal(top, bottom) else [top, bottom]:
            bar = np.searchsorted(starts, outline[0], "right")
            onset, height, bar = np.stack([*outline, bar])[:, (bar >= first) & (bar <= (last or len(starts)))]
            gap = np.diff(np.rint(onset * (STEPS / score.ticks_per_quarter)), prepend=0)
            if len(bar):
                columns.append([height, np.minimum(gap, 65535), bar, np.full(len(bar), len(columns) - 1)])
    pitch, gap, bar, line = (np.concatenate(column) for column in zip(*columns, strict=True))
    return Lines(pitch.astype(np.int16), gap.astype(np.int32), bar.astype(np.int32), line.astype(np.int32))


def _outline(time: np.ndarray, pitch: np.ndarray, duration: np.ndarray, sign: int, together: float) -> np.ndarray:
    """(2, N) times and pitches of the top line (sign 1) or the bottom line (-1) of notes.

    Of notes that begin together it has the outermost; but none that one further out, of the line, covers to its end.
    """
    order = np.argsort(time, kind="stable")
    time, height, end = time[order], sign * pitch[order], (time + duration)[order]
    chord = np.cumsum(np.diff(time, prepend=time[:1]) > together)
    starts = np.flatnonzero(np.diff(chord, prepend=-1))
    head = np.lexsort((-end, -height, chord))[starts]
    time, height, end = time[starts], height[head], end[head]
    covered = np.zeros(len(head), dtype=bool)
    for back in range(1, min(REACH, len(head) - 1) + 1):
        covered[back:] |= (height[:-back] > height[back:]) & (end[:-back] >= end[back:])
    return np.stack([time, sign * height])[:, ~covered]
