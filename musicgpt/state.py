"""Where in the music a sequence of ids is: ids are read one by one, each gives a new `State`.

States are immutable, so the rows of a batch, drafts and undoing cost nothing. Reading is lenient: prompts come from
real files, which may break the rules that hold for new music.

Time is counted in ticks and bars from the beginning of the prompt; units are those of `Vocabulary`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from musicgpt.vocabulary import Base, Kind, Vocabulary

DEFAULT_TEMPO = 120.0
"""Quarter notes a minute of a MIDI file that says none."""

FOREVER = 2**40
"""Ticks: no closing line."""

TIMED = frozenset({Kind.BAR, Kind.METRE, Kind.POSITION, Kind.SHIFT})
"""Kinds that lead on in time."""


@dataclass(frozen=True, slots=True)
class Note:
    """A note as it was completed; beats are quarter notes, times are from the beginning of the new music.

    Seconds are counted by the tempi up to here: a change while the note sounds is not yet known.
    """

    onset_beats: float
    duration_beats: float
    onset_seconds: float
    duration_seconds: float
    pitch: int
    velocity: int
    program: int
    """0 to 127; 128 for drums."""
    track: int
    """Instruments are numbered by their first notes, those of the prompt before the new ones."""


class Sounding(NamedTuple):
    program: int
    pitch: int
    velocity: int
    onset: int
    seconds: float
    """Of the onset, from the beginning of the new music."""
    end: int
    """In ticks, as the onset; FOREVER while it is not known."""
    new: bool


class State(NamedTuple):
    """Where in the music a sequence is; ticks and bars count from the beginning of the prompt."""

    phase: Kind = Kind.START
    """The kind of the last base token."""
    metre: int = 0
    tempo: float = 0.0
    program: int = -1
    bar: int = 0
    bar_start: int = 0
    now: int = 0
    """Steps since the bar line; -1: before the first position of the bar."""
    shift: int = 0
    """The last time shift, in steps."""
    low: int = -1
    """The highest pitch that the program in force has begun in this moment."""
    placed: bool = False
    """Whether it has begun or ended a note in this moment."""
    pitch: int = -1
    sounding: tuple[Sounding, ...] = ()
    programs: frozenset[int] = frozenset()
    tracks: tuple[int, ...] = ()
    """The programs in the order of their first notes."""
    notes: int = 0
    """New ones."""
    beat: int = -1
    """The tick at which the beat of the last new note begins; -1: there is none."""
    notes_in_beat: int = 0
    """New ones that begin in that beat."""
    content: tuple[tuple[int, int, int], ...] = ()
    """(step, program, pitch) of the notes that begin in this bar."""
    rang: bool = False
    """Whether a note sounds into this bar."""
    contents: tuple[tuple[tuple[int, int, int], ...], ...] = ()
    """The same of the new bars before it, as many as are kept; (-1, bar, -1) where notes sound and none begins."""
    tempo_tick: int = 0
    """The tick at which the tempo last changed."""
    tempo_seconds: float = 0.0
    """The same in seconds, from the beginning of the new music."""
    owed: tuple[int, ...] = ()
    """Marks that are asked for of this segment and still to be said."""
    ended: bool = False
    completed: tuple[Note, ...] = ()
    """The notes that the last id completed."""


class Reader:
    """Reads the ids of one piece: first a prompt, then, from `begin` on, the new music."""

    def __init__(self, vocabulary: Vocabulary, kept_bars: int = 0) -> None:
        self.vocabulary = vocabulary
        self.boundary = 0
        """The tick at which the new music begins."""
        self._kept_bars = kept_bars  # how many bars before that now a state tells of
        self._counting = False  # of notes: those of the prompt are not the new ones

    def start(self) -> State:
        """Before the first id."""
        v = self.vocabulary
        return State(metre=v.default_metre, tempo=0.0 if v.has_tempos else DEFAULT_TEMPO)

    def begin(self, state: State, boundary: int) -> State:
        """From here on notes are new ones, and times are from the tick `boundary`."""
        self.boundary, self._counting = boundary, True
        return state._replace(
            tempo_tick=boundary,
            tempo_seconds=0.0,
            beat=-1,
            notes_in_beat=0,
            content=(),
            contents=(),
            completed=(),
        )

    def tick(self, state: Any) -> int:
        """The tick of now."""
        tick: int = state.bar_start + max(state.now, 0) * self.vocabulary.ticks_per_step[state.metre]
        return tick

    def beat(self, state: Any) -> int:
        """The tick at which the beat of now begins."""
        v = self.vocabulary
        steps = max(state.now, 0) // v.steps_per_beat * v.steps_per_beat
        tick: int = state.bar_start + steps * v.ticks_per_step[state.metre]
        return tick

    def seconds(self, state: Any, tick: int) -> float:
        """From the beginning of the new music to a tick."""
        per_tick = 60 / (state.tempo or DEFAULT_TEMPO) / self.vocabulary.ticks_per_quarter
        return float(state.tempo_seconds + (tick - state.tempo_tick) * per_tick)

    def bars(self, ids: Sequence[int]) -> list[int]:
        """The bar behind each base token of ids from the beginning of a piece, counted from 0."""
        at = SimpleNamespace(**self.start()._asdict())
        found = []
        for id in ids:
            for token in self.vocabulary.tokens[id]:
                if token.kind in TIMED:
                    self._step(at, token)
                found.append(at.bar)
        return found

    def read(self, state: State, tokens: Sequence[Base]) -> State:
        at = SimpleNamespace(**state._asdict())
        at.completed = ()
        for token in tokens:
            self._step(at, token)
        return State(**vars(at))

    def _step(self, at: Any, token: Base) -> None:
        """One base token, whether legal or not: prompts are read by this too."""
        v, value = self.vocabulary, int(token.value)
        if token.kind == Kind.MARK:
            return
        if token.kind == Kind.BAR:
            if at.phase != Kind.START:
                self._next_bar(at)
            at.now = -1
            self._next_moment(at)
        elif token.kind == Kind.METRE:
            if v.scheme != "remi" and at.now > 0:  # some pieces change it within a bar: a bar line comes there
                at.bar_start = self.tick(at) - v.bar_ticks[at.metre]
                at.now = 0
                self._next_bar(at)
            at.metre = value
        elif token.kind == Kind.POSITION:
            at.now = value
            self._next_moment(at)
        elif token.kind == Kind.SHIFT:
            at.shift = value
            if value:
                at.now += value
                while at.now >= v.bar_steps[at.metre]:
                    at.now -= v.bar_steps[at.metre]
                    self._next_bar(at)
                self._next_moment(at)
        elif token.kind == Kind.TEMPO:
            here = self.tick(at)
            at.tempo_seconds = self.seconds(at, here)
            at.tempo_tick, at.tempo = here, token.value
        elif token.kind == Kind.PROGRAM:
            if value != at.program:
                at.low, at.placed = -1, False
            at.program = value
            at.programs |= {value}
        elif token.kind == Kind.ON:
            at.pitch = at.low = value
            at.placed = True
            self._begin_note(at)
        elif token.kind == Kind.VELOCITY and at.sounding:
            at.sounding = (*at.sounding[:-1], at.sounding[-1]._replace(velocity=value))
        elif token.kind == Kind.DURATION:
            self._end_note(at, at.pitch, self.tick(at) + value * v.ticks_per_step[at.metre])
        elif token.kind == Kind.OFF:
            at.placed = True
            self._end_note(at, value, self.tick(at))
        at.phase = token.kind

    def _next_bar(self, at: Any) -> None:
        if at.bar_start >= self.boundary and self._kept_bars:
            # a bar into which notes sound is like no other, and not silent
            played = at.content or (((-1, at.bar, -1),) if at.rang else ())
            at.contents = (*at.contents, played)[-self._kept_bars :]
        at.content = ()
        at.bar_start += self.vocabulary.bar_ticks[at.metre]
        at.bar += 1
        at.rang = any(note.end > at.bar_start for note in at.sounding)

    def _next_moment(self, at: Any) -> None:
        at.low, at.placed = -1, False
        if self.vocabulary.scheme != "midilike":
            tick = self.tick(at)
            at.sounding = tuple(note for note in at.sounding if note.end > tick)

    def _begin_note(self, at: Any) -> None:
        onset = self.tick(at)
        note = Sounding(at.program, at.pitch, 0, onset, self.seconds(at, onset), FOREVER, self._counting)
        at.sounding = (*at.sounding, note)
        if at.program not in at.tracks and self.vocabulary.scheme != "midilike":
            at.tracks = (*at.tracks, at.program)
        at.content = (*at.content, (max(at.now, 0), at.program, at.pitch))
        if self._counting:
            at.notes += 1
            beat = self.beat(at)
            at.notes_in_beat = at.notes_in_beat + 1 if at.beat == beat else 1
            at.beat = beat

    def _end_note(self, at: Any, pitch: int, tick: int) -> None:
        mine = [n for n in at.sounding if n.pitch == pitch and n.program == at.program and n.end == FOREVER]
        if not mine:
            return
        note = mine[0]._replace(end=tick)
        rest = tuple(other for other in at.sounding if other is not mine[0])
        if note.program not in at.tracks:
            at.tracks = (*at.tracks, note.program)
        at.sounding = rest if self.vocabulary.scheme == "midilike" else (*rest, note)
        if note.new:
            at.completed = (*at.completed, self._note(at, note))

    def _note(self, at: Any, note: Sounding) -> Note:
        per_beat = self.vocabulary.ticks_per_quarter
        end = self.seconds(at, note.end)
        return Note(
            (note.onset - self.boundary) / per_beat,
            (note.end - note.onset) / per_beat,
            note.seconds,
            end - note.seconds,
            note.pitch,
            note.velocity,
            note.program,
            at.tracks.index(note.program),
        )
