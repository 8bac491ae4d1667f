"""A piece with a hole <-> the ids behind which the hole is filled. A hole is some bars of some tracks, or of all.

    BOS  Fill_Suffix  what begins from the first bar of the hole on, without the hole
         Fill_Prefix  the bars before it
         Fill_Middle  FillBars_n  Track_p …  the hole  EOS

The suffix comes first, so that the middle goes on where the prefix stops: it begins with a bar line and ends with the
one behind the hole. Tempo and metre belong to what stands around a hole; what is filled in is notes. Both sides are cut
to the bars nearest to the hole, the suffix to half of the room. Marks of controls stand in the middle where a document
has them, segments counted from the first bar of the hole; they tell of the notes that are filled in alone.

Source: filling in by moving the middle to the end, Bavarian et al. 2022.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from symusic.core import NoteTick, NoteTickList, ScoreTick, TrackTick

from musicgpt import midi
from musicgpt.errors import InputError
from musicgpt.marks import DRUMS, MIDDLE, PREFIX, SEGMENT_BARS, SUFFIX, TRACKS, Levels
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.state import Reader
from musicgpt.vocabulary import Kind, Vocabulary

SPANS = (1, 2, 4, 8)
"""Bars of a hole in an exercise."""

LEAST_PREFIX_BARS = 4
"""The suffix gives way to these."""

ATTEMPTS = 8
"""Holes that are drawn for an exercise: some are silent, or too full."""


class New(NamedTuple):
    """A note that was not there; times in quarter notes, from the first bar line of the hole."""

    onset_beats: float
    duration_beats: float
    pitch: int
    velocity: int
    program: int
    """128 for drums."""


class Frame(NamedTuple):
    """What stands around a hole, as ids."""

    suffix: list[int]
    prefix: list[int]
    ahead: int
    """The hole begins at that bar line behind the prefix; 1 is the next."""
    middle: list[int]
    """The hole as it was, from its first bar line to the one behind it; empty where it is not known."""


def sounding_tracks(score: ScoreTick) -> list[int]:
    """The places in `score.tracks` of those with notes: a track's number is its place in this list."""
    return [i for i, track in enumerate(score.tracks) if len(track.notes)]


def emptied(score: ScoreTick, begin: int, end: int, tracks: Iterable[int]) -> tuple[ScoreTick, ScoreTick]:
    """The score without the notes of these tracks that begin in ticks [begin, end), and a score of those alone."""
    outside, inside, emptied = score.copy(), score.copy(), set(tracks)
    for i, track in enumerate(score.tracks):
        notes = track.notes.numpy()
        hit = (notes["time"] >= begin) & (notes["time"] < end) & (i in emptied)
        outside.tracks[i].notes, inside.tracks[i].notes = _some(notes, ~hit), _some(notes, hit)
    return outside, inside


def centre(score: ScoreTick, track: int) -> float:
    """The mean pitch of a track."""
    pitches = score.tracks[track].notes.numpy()["pitch"]
    return float(pitches.mean()) if len(pitches) else 60.0


def filled(outside: ScoreTick, begin: int, end: int, notes: Sequence[New], tracks: Mapping[int, float]) -> ScoreTick:
    """A copy with new notes, whose times are from the tick `begin` on; what was there stays.

    Nothing rings over the tick `end`. Each goes into that track of its program whose mean pitch is nearest, of those in
    `tracks` (place: mean pitch); where there is none, into a new one. Where a note that was there still sounds, a new
    one of its pitch begins behind it or is left out.
    """
    score = outside.copy()
    places: dict[int, list[int]] = {}
    for i in tracks:
        places.setdefault(midi.rank_of(score.tracks[i]), []).append(i)
    for note in notes:
        if note.program not in places:
            score.tracks.append(TrackTick("", note.program % DRUMS, note.program == DRUMS))
            places[note.program] = [len(score.tracks) - 1]
        own = min(places[note.program], key=lambda i: abs(tracks.get(i, 60.0) - note.pitch))
        time = min(end - 1, begin + round(note.onset_beats * score.ticks_per_quarter))  # few ticks a beat: rounded over
        stop = max(time + 1, begin + round((note.onset_beats + note.duration_beats) * score.ticks_per_quarter))
        if own < len(outside.tracks):
            old = outside.tracks[own].notes.numpy()
            rings = (old["pitch"] == note.pitch) & (old["time"] < time) & (old["time"] + old["duration"] > time)
            time = int((old["time"] + old["duration"])[rings].max(initial=time))
        stop = min(stop, end)
        if time < stop:
            score.tracks[own].notes.append(NoteTick(time, stop - time, note.pitch, note.velocity))
    for track in score.tracks:
        track.notes.sort(inplace=True)
    return score


def _some(notes: dict[str, np.ndarray], kept: np.ndarray) -> NoteTickList:
    made: NoteTickList = NoteTickList.from_numpy(*(notes[k][kept] for k in ("time", "duration", "pitch", "velocity")))
    return made


def _excerpt(score: ScoreTick, begin: int, end: int) -> ScoreTick | None:
    """What begins in ticks [begin, end) as a score of its own, in the tempo and metre that hold there; None if nothing.

    Notes ring on behind it.
    """
    score = midi.from_tick(score, begin)
    parts: list[Any] = [score.tempos, score.time_signatures, *(track.notes for track in score.tracks)]
    for part in parts:
        part.filter(lambda event: event.time < end - begin, inplace=True)
    return score if score.note_num() else None


@lru_cache(maxsize=2)
def frames_of(tokenizer: MidiTokenizer) -> Frames:
    """Made once for a tokenizer, whose vocabulary takes time to work out."""
    return Frames(tokenizer, Vocabulary(tokenizer))


class Frames:
    """Scores with holes -> ids of one vocabulary."""

    def __init__(self, tokenizer: MidiTokenizer, vocabulary: Vocabulary) -> None:
        self.tokenizer, self.vocabulary = tokenizer, vocabulary
        self._reader = Reader(vocabulary)

    def opening(self, frame: Frame, bars: int, programs: Iterable[int]) -> tuple[list[int], list[int]]:
        """The ids that come before the prefix, and those between prefix and middle."""
        mark = self.tokenizer.mark
        asked = [mark(f"FillBars_{bars}"), *(mark(TRACKS[program]) for program in sorted(programs))]
        return [self.tokenizer.bos_id, mark(SUFFIX), *frame.suffix, mark(PREFIX)], [mark(MIDDLE), *asked]

    def exercise(
        self, score: ScoreTick, room: int, random: np.random.Generator, *, controls: bool = False
    ) -> list[int]:
        """One of at most `room` ids, with BOS and EOS; empty where no hole was found that makes one.

        Half of the holes are in all tracks, a quarter in some of them, a quarter in one that is not there behind the
        hole, and half of the time not before it. With `controls`, marks tell of what is in it.
        """
        tracks = sounding_tracks(score)
        lines = midi.BarLines(score)
        total = midi.last_bar(score)
        if not total:
            return []
        for _ in range(ATTEMPTS):
            bars = int(random.choice([span for span in SPANS if span <= total]))
            first = 1 + int(random.integers(total - bars + 1))
            begin, end = lines.begin(first), lines.begin(first + bars)
            chosen, gone = set(tracks), (begin, end)
            if len(tracks) > 1 and random.random() < 0.5:
                whole = random.random() < 0.5
                count = 1 if whole else 1 + int(random.integers(len(tracks) - 1))
                chosen = {int(i) for i in random.choice(tracks, count, replace=False)}
                if whole:
                    gone = (0 if random.random() < 0.5 else begin, int(score.end()) + 1)
            _, inside = emptied(score, begin, end, chosen)
            outside, _ = emptied(score, *gone, chosen)
            if not inside.note_num() or not outside.note_num():
                continue
            programs = {midi.rank_of(score.tracks[i]) for i in chosen}
            said = self.tokenizer.said(self.levels(inside, begin, end), random) if controls else []
            try:
                frame = self.frame(outside, first, bars, room - 6 - len(programs) - sum(map(len, said)), inside)
            except InputError:  # of odd bars, or of what miditok cannot write
                continue
            if frame is not None:
                before, between = self.opening(frame, bars, programs)
                middle = self._marked(frame, lines.metre(first), said)
                return [*before, *frame.prefix, *between, *middle, self.tokenizer.eos_id]
        return []

    def levels(self, inside: ScoreTick, begin: int, end: int) -> list[Levels]:
        """What marks say of each segment of a hole, counted from its first bar line; `inside` has nothing else.

        Of what rings on behind it no more than is in it; and not how many bars are left, as the piece goes on.
        """
        hole = midi.from_tick(inside, begin)
        for track in hole.tracks:
            for note in track.notes:
                note.duration = min(note.duration, end - begin - note.time)
        found = self.tokenizer.levels(hole, 0, (end - begin) / hole.ticks_per_quarter)
        return [{key: level for key, level in levels.items() if key[1] != "bars_left"} for levels in found]

    def _marked(self, frame: Frame, metre: tuple[int, int], said: Sequence[list[int]]) -> list[int]:
        """The middle, with what is said of each of its segments."""
        v = self.vocabulary
        state = self._reader.read(self._reader.start(), [token for id in frame.prefix for token in v.tokens[id]])
        line = state.bar_start + frame.ahead * v.bar_ticks[state.metre] if frame.prefix else 0
        segment = SEGMENT_BARS * v.bar_ticks[v.metres.index(metre)]
        begins = [(line + i * segment) / v.ticks_per_quarter for i in range(len(said))]
        return self.tokenizer.interspersed([*frame.prefix, *frame.middle], begins, said)[len(frame.prefix) :]

    def frame(
        self, outside: ScoreTick, first: int, bars: int, room: int, inside: ScoreTick | None = None
    ) -> Frame | None:
        """What stands around these bars, in at most `room` ids; None if the middle takes too many of them.

        `outside` has no note of the hole, `inside` nothing else: the middle is made of it.

        Raises:
            InputError: a bar of the hole is cut short, or of a metre that the vocabulary lacks; or the metre changes.
        """
        lines = midi.BarLines(outside)
        for bar in range(first, first + bars):
            if not self._is_whole(outside, lines, bar):
                raise InputError(
                    "bar {} is no whole bar of {}/{} as this model's vocabulary has it".format(bar, *lines.metre(bar))
                )
            if lines.metre(bar) != lines.metre(first):
                raise InputError(f"the metre changes in bar {bar}, within what is to be filled at once")
        onsets = np.sort(np.concatenate([track.notes.numpy()["time"] for track in outside.tracks] or [np.zeros(0)]))

        def much(begin: int, end: int) -> bool:  # a note takes three ids or more; with merges about two
            return bool(np.diff(np.searchsorted(onsets, [lines.begin(begin), lines.begin(end)])) > room // 3)

        left = right = first
        while left > 1 and self._is_whole(outside, lines, left - 1) and not much(left - 1, first):
            left -= 1
        last = lines.bar_at(int(onsets[-1])) if len(onsets) else 0
        while right <= last and self._is_whole(outside, lines, right) and not much(first, right):
            right += 1
        after = _excerpt(outside, lines.begin(first), lines.begin(right))
        prefix, ahead, middle = self._before(outside, inside, lines, left, first, bars)
        least = self._last_bars_length(prefix)
        room -= len(middle)
        if inside is not None and room < least:
            return None
        suffix = [] if after is None else self.first_bars(self.tokenizer.encode(after), min(room // 2, room - least))
        prefix = self._last_bars(prefix, room - len(suffix))
        if not any(token.kind == Kind.ON for id in prefix for token in self.vocabulary.tokens[id]):
            prefix = []  # silence is no beginning to go on from
        return Frame(suffix, prefix, ahead, middle)

    def _is_whole(self, score: ScoreTick, lines: midi.BarLines, bar: int) -> bool:
        beats, unit = lines.metre(bar)
        length = (lines.begin(bar + 1) - lines.begin(bar)) * unit
        return (beats, unit) in self.vocabulary.metres and length == 4 * score.ticks_per_quarter * beats

    def _before(
        self, outside: ScoreTick, inside: ScoreTick | None, lines: midi.BarLines, left: int, first: int, bars: int
    ) -> tuple[list[int], int, list[int]]:
        """The ids of the bars from `left` to the hole, how many lines it is ahead of them, and the ids of the hole."""
        begin = lines.begin(first)
        end = begin if inside is None else lines.begin(first + bars)
        score = outside.copy()
        for i, track in enumerate(score.tracks):
            before = track.notes.numpy()
            track.notes = _some(before, before["time"] < begin)
            for note in inside.tracks[i].notes if inside is not None else ():
                track.notes.append(NoteTick(note.time, min(note.duration, end - note.time), note.pitch, note.velocity))
        given = _excerpt(score, lines.begin(left), begin) is not None
        if not given:
            if inside is None:
                return [], 1, []
            left = first
        score.tempos.filter(lambda event: event.time < max(begin, 1), inplace=True)
        score.time_signatures.filter(lambda event: event.time <= begin, inplace=True)
        start = lines.begin(left)
        part = _excerpt(score, start, end)
        assert part is not None
        # a note on the line behind, so that there are bars up to it; its own ids, the last there, are cut off
        last = max((track for track in part.tracks if len(track.notes)), key=midi.rank_of)
        last.notes.append(NoteTick(end - start, part.ticks_per_quarter, last.notes[0].pitch, last.notes[0].velocity))
        ids = self.tokenizer.encode(part)
        spelled = _Spelled(self.vocabulary, ids, self._reader.bars(ids))
        at = spelled.reaches(first - left) if given else 0
        ahead = first - left - spelled.bars[at - 1] if at else 1
        close = spelled.closing(first + bars - left) if inside is not None else at
        return spelled.ids(0, at), ahead, spelled.ids(at, close)

    def first_bars(self, ids: list[int], most: int) -> list[int]:
        """As many whole bars as there is room for."""
        if len(ids) <= most:
            return ids
        return ids[: max((line for line in self._lines(ids) if line <= most), default=0)]

    def _last_bars(self, ids: list[int], most: int) -> list[int]:
        first = max(0, len(ids) - most)
        while first:
            start, header = self.tokenizer.window(ids, first)
            if start >= len(ids) or (not header and start == first and first not in self._lines(ids)):
                return []
            if (over := len(header) + len(ids) - start - most) <= 0:
                return [*header, *ids[start:]]
            first = start + over
        return ids

    def _last_bars_length(self, ids: list[int]) -> int:
        lines = self._lines(ids)
        return len(ids) - lines[-LEAST_PREFIX_BARS] if len(lines) >= LEAST_PREFIX_BARS else len(ids)

    def _lines(self, ids: Sequence[int]) -> list[int]:
        """The places of the ids that begin with reaching a bar line."""
        spelled = _Spelled(self.vocabulary, ids, self._reader.bars(ids))
        return [n for n, at in enumerate(spelled.starts[:-1]) if at and spelled.bars[at] > spelled.bars[at - 1]]


class _Spelled:
    """Ids as base tokens, and behind each of them the bar, from 0."""

    def __init__(self, vocabulary: Vocabulary, ids: Sequence[int], bars: list[int]) -> None:
        self._vocabulary, self._ids, self.bars = vocabulary, ids, bars
        self._tokens = [token for id in ids for token in vocabulary.tokens[id]]
        self.starts = [0, *accumulate(len(vocabulary.tokens[id]) for id in ids)]

    def reaches(self, bar: int) -> int:
        """The place of the token with which a bar is reached."""
        return bisect_left(self.bars, bar)

    def closing(self, bar: int) -> int:
        """The place behind the token with which a bar is reached, and the ends of notes on its line."""
        at = end = self.reaches(bar) + 1
        while at < len(self._tokens) and self._tokens[at].kind != Kind.ON:
            at += 1
            if self._tokens[at - 1].kind == Kind.OFF:
                end = at
        return end

    def ids(self, begin: int, end: int) -> list[int]:
        """Those of the tokens from one place to another; ids that are cut are spelled anew."""
        first, last = bisect_left(self.starts, begin), bisect_right(self.starts, end) - 1
        if last < first:  # both within one id
            return self._vocabulary.spell(self._tokens[begin:end])
        spell = self._vocabulary.spell
        head, tail = self._tokens[begin : self.starts[first]], self._tokens[self.starts[last] : end]
        return [*spell(head), *self._ids[first:last], *spell(tail)]
