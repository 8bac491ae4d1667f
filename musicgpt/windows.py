"""Ids of music -> where a window of them may begin: at a bar line, with what holds there said again.

A window cut anywhere would begin within a note, in no metre, tempo or program. One that begins at a bar line, with
the header found here before it, decodes to the notes of the whole sequence from that line on. What the header says is
in base ids, which every vocabulary has, behind the style of the sequence, if it has one:

REMI                  Tempo, Program; a window begins with a Bar token, and each bar states its metre
TSD, MIDI-Like        TimeSig, Tempo, notes that sound on (MIDI-Like), the time from line to event, Program
Structured            the time from line to event; bars are of 4/4, as its stream knows no metre

Before these, the marks of the segment (see marks.py) that it begins in, unless it begins with the segment.

Except in REMI a bar line lies within or behind a time shift. The id with that shift is not part of the window: what a
merged id has behind the shift is the end of the header, so no music is lost and no note is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from musicgpt.marks import CONTROL_MARKS, PREFIX, SEGMENT_BARS, STYLE, SUFFIX, TRACKS

if TYPE_CHECKING:
    import miditok

KNOWN = frozenset(
    "Bar Position TimeSig Tempo Program TimeShift Pitch PitchDrum NoteOn DrumOn NoteOff DrumOff Velocity "
    "Duration".split()
)
"""Types of tokens whose meaning at a bar line is known here; windows of a vocabulary with others begin anywhere."""

SOUNDS = {"NoteOn": 1, "DrumOn": 1, "NoteOff": -1, "DrumOff": -1}


class Windows:
    """Finds the windows of one vocabulary; its tables are made when the first one is asked for."""

    def __init__(self, wrapped: miditok.MusicTokenizer, expansions: Sequence[tuple[str, ...]]) -> None:
        self._wrapped = wrapped
        self._expansions = expansions

    @cached_property
    def _tables(self) -> _Tables:
        return _Tables(self._wrapped, self._expansions)

    def window(self, ids: Sequence[int] | np.ndarray, first: int) -> tuple[int, list[int]]:
        """Ids, and the earliest place -> the place, and the header: the first bar line, or BOS or EOS before any.

        The marks behind which music begins anew count as BOS does.

        Behind the last of them it is `first` itself, with no header.
        """
        tables = self._tables
        if not tables.known or not 0 <= first < len(ids):
            return first, []
        ids = np.asarray(ids)
        ends = np.flatnonzero(tables.ends[ids])
        k = int(np.searchsorted(ends, first))
        begin, end = int(ends[k - 1]) + 1 if k else 0, int(ends[k]) if k < len(ends) else len(ids)
        find = _at_bar_token if tables.has_bars else _behind_shift
        found = find(tables, ids[begin:end], first - begin) if first < end else None
        if found is None:
            return end if end < len(ids) else first, []
        start, header = found
        if start and tables.style[ids[begin]]:
            header = [int(ids[begin]), *header]
        return begin + start, header

    def reached(self, ids: Sequence[int], ticks: Sequence[int]) -> list[int]:
        """Ids, and rising ticks (of `time_division` a quarter) that are bar lines -> where the music of each begins.

        That is behind the first id that reaches it; in REMI behind its Bar token, and the metre if that follows.
        """
        tables, array = self._tables, np.asarray(ids)
        owner, tokens = _tokens(tables, array)
        if not tables.has_bars:
            at, *_, time = _clock(tables, tokens)
            return [int(owner[at[k]]) + 1 if k else 0 for k in np.searchsorted(time, ticks) if k < len(at)]
        bars = np.flatnonzero(tables.is_bar[tokens])
        says = np.flatnonzero(tables.bar_ticks[tokens] > 0)
        timed = np.append(tables.unsaid, tokens[says])
        length = tables.bar_ticks[timed[np.searchsorted(says, np.append(bars[1:], len(tokens)))]]
        begins = np.searchsorted(np.cumsum(length) - length, ticks)
        behind = bars + np.isin(bars + 1, says)
        return [int(owner[behind[k]]) + 1 for k in begins if k < len(bars)]


class _Tables:
    """What each id (`of`: base token) means; -1 and 0 stand for nothing of the kind."""

    def __init__(self, wrapped: miditok.MusicTokenizer, expansions: Sequence[tuple[str, ...]]) -> None:
        tokens = list(dict.fromkeys(token for spelled in expansions for token in spelled))
        number = {token: n for n, token in enumerate(tokens)}
        split = [(token.split("_")[0], token.split("_")[1]) for token in tokens]
        kinds = np.array([kind for kind, _ in split])
        single = {spelled[0]: id for id, spelled in reversed(list(enumerate(expansions))) if len(spelled) == 1}
        special = set(wrapped.special_tokens)
        self.known = set(kinds[[token not in special for token in tokens]]) <= KNOWN and len(single) == len(tokens)
        self.has_bars = "Bar_None" in number
        self.changes_program: bool = wrapped.config.program_changes
        self.one_shift = "TimeShift_0.0.1" in number
        """Structured: each note has one shift before it, of no time where there is none."""

        # by id
        ends = {"BOS_None", "EOS_None", SUFFIX, PREFIX}
        self.ends = np.array([not ends.isdisjoint(spelled) for spelled in expansions])
        self.style = np.array(["".join(spelled).startswith(STYLE) for spelled in expansions])
        marks, tracks = set(CONTROL_MARKS), set(TRACKS)
        self.mark = np.array([not marks.isdisjoint(spelled) for spelled in expansions])
        self.says = self.mark & [tracks.isdisjoint(spelled) for spelled in expansions]
        """Of the marks of controls, those that say more than which instrument the next are about."""
        self.bar = np.array([spelled[:1] == ("Bar_None",) for spelled in expansions])
        self.tempo = np.array([_last(spelled, "Tempo_", single) for spelled in expansions])
        self.program = np.array([_last(spelled, "Program_", single) for spelled in expansions])
        spellings = [[number[token] for token in spelled if token not in special] for spelled in expansions]
        self.lengths = np.array([len(spelling) for spelling in spellings])
        self.offsets = np.cumsum(self.lengths) - self.lengths
        self.spelled = np.array([n for spelling in spellings for n in spelling])  # base tokens, id after id

        # by base token, and the metre of a stream that states none behind the last
        self.id_of = np.array([single.get(token, -1) for token in tokens])
        self.unsaid = len(tokens)
        self.is_tempo, self.is_velocity = kinds == "Tempo", kinds == "Velocity"
        self.is_bar = kinds == "Bar"
        self.is_timed = np.isin(kinds, ("TimeShift", "TimeSig"))
        self.sounds = np.array([SOUNDS.get(kind, 0) for kind in kinds])
        self.pitch = np.array([int(value) if kind in SOUNDS else 0 for kind, value in split], dtype=np.int16)
        # programs rising, drums (-1) behind them
        self.rank = np.array([int(value) % 129 if kind == "Program" else -1 for kind, value in split], dtype=np.int16)
        self.program_of_rank = {int(self.rank[n]): int(self.id_of[n]) for n in np.flatnonzero(kinds == "Program")}
        metres = [
            tuple(map(int, v.split("/"))) if kind == "TimeSig" else (0, 4) for kind, v in [*split, ("TimeSig", "4/4")]
        ]
        units = sorted({unit for _, unit in metres})
        self.unit = np.array([units.index(unit) for _, unit in metres])
        self.bar_ticks = np.array([4 * wrapped.time_division * beats // unit for beats, unit in metres])
        """(tokens + 1,): the length of a bar of this metre, 0 for what is none."""
        self.shift_ticks = np.zeros((len(units), len(tokens) + 1), dtype=np.int64)
        self.shift_of_ticks: list[dict[int, int]] = [{} for _ in units]
        for row, unit in enumerate(units):
            ticks_of = wrapped._tpb_tokens_to_ticks[wrapped._tpb_per_ts[unit]]  # noqa: SLF001 as its decode does
            for n, (kind, value) in enumerate(split):
                if kind == "TimeShift" and value != "0.0.1":
                    self.shift_ticks[row, n] = ticks_of[value]
                if kind == "TimeShift":
                    self.shift_of_ticks[row][int(self.shift_ticks[row, n])] = int(self.id_of[n])

    def shifts(self, ticks: int, unit: int) -> list[int] | None:
        """The ids of that much time, longest first; None where they cannot say it."""
        known = self.shift_of_ticks[unit]
        if self.one_shift:
            return [known[ticks]] if ticks in known else None
        ids = []
        while ticks:
            longest = max((length for length in known if length <= ticks), default=0)
            if not longest:
                return None
            ids.append(known[longest])
            ticks -= longest
        return ids


def _last(spelled: tuple[str, ...], kind: str, single: dict[str, int]) -> int:
    return next((single.get(token, -1) for token in reversed(spelled) if token.startswith(kind)), -1)


def _in_force(said: np.ndarray) -> list[int]:
    """The last that was said (not -1), if any."""
    said = said[said >= 0]
    return [int(said[-1])] if len(said) else []


def _last_marks(tables: _Tables, ids: np.ndarray) -> tuple[int, list[int]]:
    """The last marks of controls that stand together, and the place of the first."""
    places = np.flatnonzero(tables.mark[ids])
    gaps = np.flatnonzero(np.diff(places) > 1)
    last = places[gaps[-1] + 1 :] if len(gaps) else places
    return (int(last[0]), ids[last].tolist()) if tables.says[ids[last]].any() else (0, [])


def _at_bar_token(tables: _Tables, ids: np.ndarray, first: int) -> tuple[int, list[int]] | None:
    places = np.flatnonzero(tables.bar[ids[first:]])
    if not len(places):
        return None
    start = first + int(places[0])
    before = ids[:start]
    program = _in_force(tables.program[before]) if tables.changes_program else []
    said, marks = _last_marks(tables, before)
    if np.count_nonzero(tables.bar[ids[said : start + 1]]) >= SEGMENT_BARS:
        marks = []
    return start, marks + _in_force(tables.tempo[before]) + program


def _behind_shift(tables: _Tables, ids: np.ndarray, first: int) -> tuple[int, list[int]] | None:
    if not tables.lengths[ids[:first]].any():
        return first, []  # the beginning is a bar line
    owner, tokens = _tokens(tables, ids)
    at, timed, metre, time = _clock(tables, tokens)
    unit, length = tables.unit[timed[metre]], tables.bar_ticks[timed[metre]]
    line = time - (time - time[metre]) % length  # the last bar line; a metre begins with one
    place = owner[at] + 1
    new = np.flatnonzero((line[1:] > line[:-1]) & (first <= place[1:]) & (place[1:] < len(ids))) + 1
    for k in new.tolist():
        shifts = tables.shifts(int(time[k] - line[k]), int(unit[k]))
        if shifts is None:
            continue
        before = tokens[: at[k] + 1]
        stated = [int(tables.id_of[timed[metre[k]]])] if metre[k] else []
        stated += _in_force(np.where(tables.is_tempo[before], tables.id_of[before], -1))
        sounding, rank = _sounding(tables, before)
        program = _in_force(tables.rank[before]) if tables.changes_program else []
        stated += sounding + shifts
        if program and program != [rank]:
            stated.append(tables.program_of_rank[program[0]])
        rest = tokens[at[k] + 1 : np.searchsorted(owner, owner[at[k]], side="right")]
        said, marks = _last_marks(tables, ids[: place[k]])
        if line[k] - line[np.searchsorted(place[1:], said, side="right")] >= SEGMENT_BARS * length[k]:
            marks = []
        return int(place[k]), marks + stated + tables.id_of[rest].tolist()
    return None


def _tokens(tables: _Tables, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The base tokens of music in these ids, and of each the place of its id."""
    lengths = tables.lengths[ids]
    owner = np.repeat(np.arange(len(ids)), lengths)
    within = np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]
    return owner, tables.spelled[tables.offsets[ids[owner]] + within]


def _clock(tables: _Tables, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Where time goes by or is counted by another metre: places, tokens, the index of the metre there, and ticks.

    Before them comes the beginning, at -1, where nothing is said.
    """
    at = np.concatenate(([-1], np.flatnonzero(tables.is_timed[tokens])))
    timed = np.append(tables.unsaid, tokens[at[1:]])
    metre = np.maximum.accumulate(np.where(tables.bar_ticks[timed] > 0, np.arange(len(timed)), 0))
    return at, timed, metre, np.cumsum(tables.shift_ticks[tables.unit[timed[metre]], timed])


def _sounding(tables: _Tables, tokens: np.ndarray) -> tuple[list[int], int | None]:
    """Base tokens -> ids that begin the notes still open behind them, and the program (its rank) they end in.

    Of equal pitches of a program the one that began first ends first.
    """
    at = np.flatnonzero(tables.sounds[tokens])
    begins = tables.sounds[tokens[at]] > 0
    spoken = tables.is_velocity[tokens[np.minimum(at + 1, len(tokens) - 1)]]
    at = at[~begins | spoken]
    if not len(at):
        return [], None
    rank = tables.rank[tokens]
    said = np.maximum.accumulate(np.where(rank >= 0, np.arange(len(rank)), -1))[at]
    key = np.where(said >= 0, rank[said], 0) * np.int16(128) + tables.pitch[tokens[at]]
    order = np.argsort(key, kind="stable")
    key, at = key[order], at[order]
    change = tables.sounds[tokens[at]]
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    stops = np.append(starts[1:], len(key))
    level = np.cumsum(change)
    base = level[starts] - change[starts]
    lowest = np.minimum(np.minimum.reduceat(level, starts), base)  # an end without a beginning ends nothing
    count = level[stops - 1] - lowest
    ids: list[int] = []
    last: int | None = None
    for group in np.flatnonzero(count).tolist():
        part = at[starts[group] : stops[group]]
        program = int(key[starts[group]]) // 128
        for begin in part[tables.sounds[tokens[part]] > 0][-count[group] :].tolist():
            if program != last or not tables.changes_program:
                ids.append(tables.program_of_rank[program])
            ids += tables.id_of[tokens[begin : begin + 2]].tolist()
            last = program
    return ids, last
