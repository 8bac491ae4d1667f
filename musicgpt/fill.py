"""A piece and a hole in it -> the piece with the hole filled by a model, several times over, the best first.

A model that was trained on exercises (see infill.py) reads both sides of the hole. Any other goes on from the bars
before it, several times, and says which of them makes the bars behind likeliest.

A long hole is filled from left to right, as many bars at once as exercises have, and anew where the metre changes. What
is not in the hole stays note for note, what rings into it from before too; no new note rings out of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from symusic.core import ScoreTick, TrackTickList

from musicgpt import midi, render
from musicgpt.config import Report
from musicgpt.constraints import SURROUNDED, Constraints, program_name, read_bars, read_instruments
from musicgpt.drafts import Drafts
from musicgpt.engine import TorchEngine
from musicgpt.errors import InputError, UsageError
from musicgpt.files import write_bytes
from musicgpt.generate import generate, log_likelihood
from musicgpt.grammar import MAX_INSTRUMENTS, Grammar
from musicgpt.infill import Frame, Frames, New, centre, emptied, filled, sounding_tracks
from musicgpt.marks import DRUMS, MIDDLE, MOST_BARS, PREFIX, SEGMENT_BARS, SUFFIX, Levels
from musicgpt.model import GPT
from musicgpt.originality import Index, Originality
from musicgpt.provenance import provenance_text
from musicgpt.request import Answer, Row
from musicgpt.sampling import SamplingConfig
from musicgpt.state import DEFAULT_TEMPO
from musicgpt.vocabulary import Kind

FEWEST_GUESSES = 8
"""Of a model that does not look ahead: so many go on from before the hole, and the best are chosen."""

BARS_BEHIND = 4
"""By how much of what follows they are judged."""

ATTEMPTS = 4
"""How often takes are sampled where they turn out the same as what was there."""

SAME_BEATS = 1 / 12
"""Onsets nearer than this, in quarter notes, are the same on any grid."""


@dataclass(frozen=True)
class Filled(Answer):
    """A piece whose hole was filled, and beside it what is new."""

    score: ScoreTick
    notes: tuple[New, ...]
    likelihood: float
    """By which takes are ranked: the mean log-probability, in nats, of the new ids, both sides given; of a model that
    was not trained to fill in, that of the ids of the bars behind the hole, all before given."""
    provenance: dict[str, Any]
    asked: list[Levels] = field(default_factory=list)
    controls: list[Levels] = field(default_factory=list)
    file: bytes | None = field(default=None, repr=False)
    """The MIDI file that was filled, its other events as they were; None where the piece came otherwise."""

    def originality(self, index: Index) -> Originality:
        """What its new notes share with the pieces of an index."""
        first, last = self.provenance["infill"]["bars"]
        lines, new = midi.BarLines(self.score), self.score.copy()
        new.tracks = TrackTickList()
        new = filled(new, lines.begin(first), lines.begin(last + 1), self.notes, {})
        return index.compare(new, first, last, self.provenance["settings"].get("style"))

    def _repr_html_(self) -> str:
        return render.as_html(self.score)

    def save(self, path: str | Path) -> None:
        """Raises: InputError: the file cannot be written."""
        if self.file is not None:
            write_bytes(Path(path), self.file)
            return
        midi.write_midi(self.score, Path(path), text=provenance_text(self.provenance))


@dataclass(frozen=True)
class Wanted:
    """What is to be filled, in a score: bars `first` to `last`, from 1; tracks; and what programs may play."""

    first: int
    last: int
    tracks: Mapping[int, float]
    """The place of each in the score, and its mean pitch."""
    programs: tuple[int, ...]
    constraints: Constraints

    @classmethod
    def read(cls, score: ScoreTick, bars: str | None, tracks: Sequence[str], constraints: Constraints) -> Wanted:
        """ "5-8" (None: all bars) and tracks by number or instrument, perhaps with settings, as 1:pitch-range=C2-C4.

        An instrument that the score does not have is a new track. No tracks: all.

        Raises:
            UsageError: bars or a track there is not, or neither bars nor tracks.
        """
        for name in SURROUNDED:
            if getattr(constraints, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')}: filling in keeps to the piece; name tracks by --track")
        if constraints.track:
            raise UsageError("track: say what holds for a track where it is named, tracks=['1:pitch-range=C2-C4']")
        if constraints.bars_left:
            raise UsageError("--bars-left: behind what is filled in the piece goes on; leave it out")
        there = sounding_tracks(score)
        if not there:
            raise UsageError("the piece has no notes")
        if bars is None and not tracks:
            raise UsageError("say what to fill: --bars 5-8, or --track, or both")
        total = midi.last_bar(score)
        first, last = (1, total) if bars is None else read_bars(bars)
        if last > total:
            raise UsageError(f"--bars {bars}: the piece has {total} bars; go on behind them with musicgpt generate")
        places: dict[int, float] = {}
        programs: dict[int, None] = {}
        settings: list[tuple[int, str]] = []
        for text in tracks:
            name, _, rest = text.partition(":")
            found, ranks = _named(score, there, name.strip())
            places |= {i: centre(score, i) for i in found}
            programs |= dict.fromkeys(ranks)
            settings += [(rank, rest) for rank in ranks if rest]
        if not tracks:
            places = {i: centre(score, i) for i in there}
            programs = dict.fromkeys(midi.rank_of(score.tracks[i]) for i in there)
        order = sorted(programs)
        if len([rank for rank in order if rank != DRUMS]) > MAX_INSTRUMENTS:
            raise UsageError(f"the piece has more than {MAX_INSTRUMENTS} instruments: name by --track which to fill")
        for rank, _ in settings:
            if len([i for i in places if midi.rank_of(score.tracks[i]) == rank]) > 1:
                raise UsageError(
                    f"--track: more than one of these is {program_name(rank)}, and what a track is told holds for its "
                    f"instrument: fill one at a time"
                )

        def program_of(match: re.Match[str]) -> str:
            """A track of the piece, of which a control tells -> its place among the programs."""
            _, ranks = _named(score, there, match[1])
            if missing := [rank for rank in ranks if rank not in programs]:
                raise UsageError(f"--control …{match[0]}: {program_name(missing[0])} is not filled; name it by --track")
            return f"track={order.index(ranks[0])}"

        held = replace(
            constraints,
            control=tuple(re.sub(r"(?<=[:;])track=([^;]*)", program_of, text) for text in constraints.control),
            instruments=",".join("drums" if rank == DRUMS else str(rank) for rank in order),
            track=tuple(f"{order.index(rank)}:{rest}" for rank, rest in settings),
        )
        return cls(first, last, places, tuple(order), held)


def _named(score: ScoreTick, there: list[int], name: str) -> tuple[list[int], list[int]]:
    """A track by number or instrument -> its places in the score, none if it is new, and its programs."""
    if name.isdecimal():
        if int(name) >= len(there):
            raise UsageError(f"--track {name}: the piece has {len(there)} tracks with notes, counted from 0")
        return [there[int(name)]], [midi.rank_of(score.tracks[there[int(name)]])]
    if "," in name:
        raise UsageError(f"--track {name}: expected one track; repeat --track for others")
    try:
        rank = read_instruments(name)[0]
    except UsageError as error:
        raise UsageError(str(error).replace("--instruments", "--track")) from error
    found = [i for i in there if midi.rank_of(score.tracks[i]) == rank]
    if not found:  # a bass is whichever bass the piece has
        found = [i for i in there if name.lower() in program_name(midi.rank_of(score.tracks[i])).lower()]
    if found:
        return found, list(dict.fromkeys(midi.rank_of(score.tracks[i]) for i in found))
    return [], [rank]


class Take(NamedTuple):
    """A piece as far as it is filled."""

    score: ScoreTick
    tracks: Mapping[int, float]
    """Those that new notes go to, as in `Wanted`."""
    notes: tuple[New, ...] = ()
    n_ids: int = 0
    log_likelihood: float = 0.0
    """Of all new ids together; marks of controls, which were said to the model, are none of them."""
    asked: Sequence[Levels] = ()
    """By controls, of each segment of the hole."""


class Span(NamedTuple):
    """Bars that are filled at once."""

    first: int
    bars: int


class Filler:
    """A model that fills holes."""

    def __init__(
        self, model: GPT, engine: TorchEngine, frames: Frames, sampling: SamplingConfig, report: Report
    ) -> None:
        self.model, self.engine, self.frames = model, engine, frames
        self.sampling, self.report = sampling, report
        self.trained = frames.tokenizer.has((SUFFIX, PREFIX, MIDDLE))
        """Whether the vocabulary has the marks of exercises."""
        self._weighs = (
            True  # the new ids themselves: where nothing is behind the hole, or they were made with it in view
        )
        self._said: set[str] = set()

    def fill(self, score: ScoreTick, wanted: Wanted, count: int, seed: int) -> list[tuple[Take, float]]:
        """So many takes with their likelihoods, the best first; the same as before only where nothing else came.

        Raises:
            InputError: bars that the vocabulary cannot write, or no take that came to the end of the hole.
        """
        lines = midi.BarLines(score)
        begin, end = lines.begin(wanted.first), lines.begin(wanted.last + 1)
        outside, inside = emptied(score, begin, end, wanted.tracks)
        old = [
            (midi.rank_of(track), note.pitch, (note.time - begin) / score.ticks_per_quarter)
            for track in inside.tracks
            for note in track.notes
        ]
        rings = sum(
            note.time < begin < note.time + note.duration for i in wanted.tracks for note in score.tracks[i].notes
        )
        if rings:
            self.report(f"what rings into the hole from before it stays, notes: {rings:,}")
        self._weighs = self.trained or self._behind(score, wanted.last + 1) is None
        needed = count if self.trained else max(count, FEWEST_GUESSES)
        fresh: list[Take] = []
        same: list[Take] = []
        for attempt in range(ATTEMPTS):
            for take in self._takes(outside, wanted, needed - len(fresh), seed + attempt):
                (same if _are_same(old, take.notes) else fresh).append(take)
            if len(fresh) >= needed:
                break
        takes = [*fresh, *same][:needed]
        if not takes:
            raise InputError("no take came to the end of the hole: ask for less at once (tracks, scale, ranges)")
        if len(takes) < count:
            self.report(f"{len(takes)} of {count} takes came to the end of the hole")
        if len(fresh) < min(count, len(takes)):
            self.report("what came is the same as what was there, however often it was tried")
        ranked = [(take, self._likelihood(take, wanted)) for take in takes]
        return sorted(ranked, key=lambda pair: -pair[1])[:count]

    def _takes(self, outside: ScoreTick, wanted: Wanted, count: int, seed: int) -> list[Take]:
        takes = [Take(outside, wanted.tracks)]
        for i, span in enumerate(_spans(outside, wanted)):
            if i == 0:
                takes = self._filled(takes[0], span, wanted, count, seed)
            else:  # each goes on from what it has
                takes = [new for n, take in enumerate(takes) for new in self._filled(take, span, wanted, 1, seed + n)]
        return takes

    def _filled(self, take: Take, span: Span, wanted: Wanted, count: int, seed: int) -> list[Take]:
        """A take with these bars filled, in so many ways, but for those that did not come to their end."""
        tokenizer, n_positions = self.frames.tokenizer, self.model.config.n_positions
        begin = tokenizer.opening(wanted.constraints.style)
        room = n_positions - n_positions // 4 - 5 - len(begin) - len(wanted.programs)  # a quarter for what is new
        frame = self.frames.frame(take.score, span.first, span.bars, max(0, room))
        assert frame is not None  # there is room where nothing is known of the middle
        grammar = self._grammar(take.score, frame, span, wanted)
        for remark in grammar.remarks:
            if remark not in self._said:
                self._said.add(remark)
                self.report(remark)
        before, between = begin, list[int]()
        if self.trained:
            before, between = self.frames.opening(frame, span.bars, wanted.programs)
            before = begin + before[1:]
        prompt = [*before, *grammar.prompt_ids, *between, *grammar.prelude]
        window = _Window(self.frames, frame, before, between, len(before) + len(grammar.prompt_ids), n_positions)
        rows = [Row(grammar) for _ in range(count)]
        for chosen, states in generate(
            self.engine,
            prompt,
            self.sampling,
            max_new_tokens=None,
            seed=seed,
            num_samples=count,
            eos_id=tokenizer.eos_id,
            n_ids=tokenizer.vocab_size,
            guide=grammar,
            state=grammar.begin,
            window=window if between else tokenizer.window,
            drafts=Drafts(),
            marks=tokenizer.unscored,
        ):
            for row, id, state in zip(rows, chosen, states, strict=True):
                if id is not None:
                    row.take(id, state, None)
        lines = midi.BarLines(take.score)
        hole = lines.begin(wanted.first)
        offset = (lines.begin(span.first) - hole) / take.score.ticks_per_quarter
        segments = -(-(wanted.last - wanted.first + 1) // SEGMENT_BARS) if wanted.constraints.controls else 0
        asked = [grammar.levels(segment) for segment in range(segments)]
        found = []
        for row in rows:
            row.close()
            if row.stuck or not row.notes:
                continue
            ids = row.ids[:-1]  # without EOS
            new = tuple(
                New(note.onset_beats + offset, note.duration_beats, note.pitch, note.velocity, note.program)
                for note in row.notes
            )
            score = filled(take.score, hole, lines.begin(span.first + span.bars), new, take.tracks)
            tracks = {
                i: take.tracks.get(i, 60.0) for i in (*take.tracks, *range(len(take.score.tracks), len(score.tracks)))
            }
            given = tokenizer.unscored
            n_ids = sum(id not in given for id in ids)
            total = log_likelihood(self.model, prompt + ids, len(prompt), given) * n_ids if self._weighs else 0.0
            found.append(Take(score, tracks, take.notes + new, take.n_ids + n_ids, take.log_likelihood + total, asked))
        return found

    def controls(self, take: Take, wanted: Wanted) -> list[Levels]:
        """What became of the controls asked for: see `Filled.controls`."""
        if not take.asked:
            return []
        lines = midi.BarLines(take.score)
        hole = lines.begin(wanted.first), lines.begin(wanted.last + 1)
        return self.frames.levels(emptied(take.score, *hole, take.tracks)[1], *hole)

    def _grammar(self, score: ScoreTick, frame: Frame, span: Span, wanted: Wanted) -> Grammar:
        vocabulary, lines = self.frames.vocabulary, midi.BarLines(score)
        constraints = wanted.constraints
        if vocabulary.has_metres:
            constraints = replace(constraints, time_signature="{}/{}".format(*lines.metre(span.first)))
        if vocabulary.has_tempos and not frame.prefix:
            before = [tempo.qpm for tempo in score.tempos if tempo.time <= lines.begin(span.first)]
            known = [base.value for base in vocabulary.id_of if base.kind == Kind.TEMPO]
            tempo = min(known, key=lambda value: abs(value - (before[-1] if before else DEFAULT_TEMPO)))
            constraints = replace(constraints, tempo=str(tempo))
        done, later = span.first - wanted.first, wanted.last + 1 - span.first - span.bars
        return Grammar(
            vocabulary,
            frame.prefix,
            constraints,
            bars=span.bars,
            ahead=frame.ahead,
            bars_done=done,
            bars_later=later,
        )

    def _likelihood(self, take: Take, wanted: Wanted) -> float:
        """By which takes are ranked: see `Filled.likelihood`."""
        if not self._weighs and (behind := self._behind(take.score, wanted.last + 1)) is not None:
            before = [*self.frames.tokenizer.opening(wanted.constraints.style), *behind.prefix]
            return log_likelihood(self.model, before + behind.middle, len(before))
        return take.log_likelihood / max(1, take.n_ids)

    def _behind(self, score: ScoreTick, first: int) -> Frame | None:
        """The bars from `first` on as a middle, as far as they are of one metre; None if there are none."""
        lines = midi.BarLines(score)
        for bars in range(min(BARS_BEHIND, midi.last_bar(score) - first + 1), 0, -1):
            outside, inside = emptied(score, lines.begin(first), lines.begin(first + bars), range(len(score.tracks)))
            if inside.note_num():
                with suppress(InputError):  # of odd bars
                    frame = self.frames.frame(outside, first, bars, self.model.config.n_positions - 1, inside)
                    if frame is not None:
                        return frame
        return None


class _Window:
    """Where the context is full: the nearest bars before what is new, with a little of the suffix before them."""

    def __init__(
        self, frames: Frames, frame: Frame, before: list[int], between: list[int], middle: int, n_positions: int
    ) -> None:
        self._tokenizer, self._between = frames.tokenizer, between
        self._prefix, self._middle = len(before), middle
        """Where they begin."""
        suffix = frames.first_bars(frame.suffix, n_positions // 8)
        self._lead = [*before[: -1 - len(frame.suffix)], *suffix, before[-1]]

    def __call__(self, ids: Sequence[int], first: int) -> tuple[int, list[int]]:
        if first <= self._prefix:
            return self._prefix, self._lead
        start, header = self._tokenizer.window(ids, first)
        return start, [*self._lead, *header, *(self._between if start > self._middle else ())]


def _spans(score: ScoreTick, wanted: Wanted) -> list[Span]:
    """At most so many bars as exercises have, and all of one metre."""
    lines = midi.BarLines(score)
    spans: list[Span] = []
    for bar in range(wanted.first, wanted.last + 1):
        if spans and spans[-1].bars < MOST_BARS and lines.metre(bar) == lines.metre(spans[-1].first):
            spans[-1] = Span(spans[-1].first, spans[-1].bars + 1)
        else:
            spans.append(Span(bar, 1))
    return spans


def _are_same(old: Sequence[tuple[int, int, float]], new: Sequence[New]) -> bool:
    """Whether the same pitches begin at the same times; old ones as (program, pitch, quarter notes)."""
    now = sorted((note.program, note.pitch, note.onset_beats) for note in new)
    pairs = list(zip(sorted(old), now, strict=False))
    return len(old) == len(new) and all(a[:2] == b[:2] and abs(a[2] - b[2]) < SAME_BEATS for a, b in pairs)
