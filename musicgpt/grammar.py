"""Which ids may follow: every piece that is sampled under this mask is well formed and keeps to what was asked.

A grammar is made for one prompt and one request; a state says where in the music a sequence is. States are
immutable, so the rows of a batch, drafts and undoing cost nothing:

    grammar = Grammar(vocabulary, prompt_ids, bars=8)
    state = grammar.begin                  # behind prompt_ids + grammar.prelude
    allowed = grammar.mask(state)          # (V,) bool, applied before temperature and filters
    state = grammar.advance(state, id)

What holds: token types in legal order; positions rise within the bar and stay inside it; notes are complete, sound for
some time, and one ends before the next of its pitch and program begins; programs and pitches rise within a moment, as
`encode` writes them; drum notes for drums; at most 15 instruments beside the drums; and all `Constraints`. A learned id
is legal where its whole expansion is; some that are legal in rare places only are never offered, their base tokens are.

Controls that are asked for are marks: at the beginning of each segment they are all that is allowed, one by one.

With a length, the end token is barred until it is reached. Then whatever would step over the closing line ends the
piece, and nothing sounds beyond it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt

from musicgpt.constraints import ANY, Constraints, program_name
from musicgpt.errors import InputError, UsageError
from musicgpt.harmony import strong_steps
from musicgpt.marks import CONTROLS, DRUMS, LEVELS, MOST_BARS_LEFT, SEGMENT_BARS, TRACKS, Levels, spelled
from musicgpt.state import DEFAULT_TEMPO, FOREVER, Reader, Sounding, State
from musicgpt.vocabulary import NONE, Base, Kind, Touch, Vocabulary

MAX_INSTRUMENTS = 15
"""Beside the drums: a MIDI file has 16 channels, and one is theirs."""

Mask = npt.NDArray[np.bool_]
"""(V,)"""

OPENINGS = {
    "remi": (Kind.BAR, Kind.METRE, Kind.POSITION, Kind.TEMPO),
    "tsd": (Kind.METRE, Kind.TEMPO),
    "midilike": (Kind.METRE, Kind.TEMPO),
    "structured": (),
}
"""How a piece begins: its metre and its tempo come before its first note."""


class Grammar:
    """The grammar of what may follow one prompt (ids without BOS).

    The new music begins on the bar line behind which hardly anything of the prompt rings on; with `ahead` on that many
    lines behind the end of the prompt, whatever rings on. `bars_done` of what was asked for are in the prompt already,
    and `bars_later` come behind the `bars` that are made now.

    Raises:
        UsageError: a constraint that this tokenizer cannot express.
        InputError: a prompt that leaves no room for music.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt_ids: Sequence[int] = (),
        constraints: Constraints | None = None,
        *,
        bars: int | None = None,
        seconds: float | None = None,
        ahead: int | None = None,
        bars_done: int = 0,
        bars_later: int = 0,
    ) -> None:
        self.vocabulary = vocabulary
        self.constraints = constraints or Constraints()
        self.remarks: list[str] = []
        self.bars, self.seconds = bars, seconds
        self._ahead, self._bars_done = ahead, bars_done
        self._all_bars = None if bars is None else bars_done + bars + bars_later
        self.first_bar = 0
        """Of the new music."""
        self.last_bar: int | None = None
        self.boundary = 0
        """The tick at which the new music begins."""
        self.reader = Reader(vocabulary, self.constraints.max_bar_repeats or 0)
        state = self._read(prompt_ids)
        if state.phase != Kind.START and not state.tracks:
            raise InputError("the prompt holds no note that this model's vocabulary has")
        self._compile(state)
        self.prompt_ids = list(prompt_ids)
        """Those of the prompt. Where its last moment is on the boundary, tsd and midilike take it into the prelude: the
        tempo and the metre may have to change there, and come first in a moment."""
        self.prelude, self.begin = self._begin(state)

    # what was asked, in terms of this vocabulary

    def _compile(self, prompt: State) -> None:
        v, asked = self.vocabulary, self.constraints
        given = prompt.phase != Kind.START
        if not v.has_tempos and asked.tempo_bpm is not None:
            raise UsageError(f"--tempo: the tokenizer {v.scheme} writes no tempo")
        if not v.has_metres and asked.metre not in (None, (4, 4)):
            raise UsageError(f"--time-signature {asked.time_signature}: the tokenizer {v.scheme} writes 4/4 only")
        if v.scheme == "structured":
            self.remarks.append(f"structured writes neither tempo nor metre: this is 4/4 at {DEFAULT_TEMPO:g}")
        self.tempo: float | None = None
        if asked.tempo_bpm is not None:
            known = np.array([base.value for base in v.id_of if base.kind == Kind.TEMPO])
            step = float(np.diff(np.sort(known)).max(initial=4.0))
            if not known.min() - step <= asked.tempo_bpm <= known.max() + step:
                raise UsageError(f"--tempo {asked.tempo_bpm:g}: this tokenizer has {known.min():g} to {known.max():g}")
            self.tempo = float(known[np.abs(known - asked.tempo_bpm).argmin()])
            if self.tempo != asked.tempo_bpm:
                self.remarks.append(f"tempo {asked.tempo_bpm:g} to {self.tempo:g}")
        elif given and asked.tempo != ANY and prompt.tempo:
            self.tempo = prompt.tempo
        self.metre: int | None = None
        if asked.metre is not None and v.has_metres:
            if asked.metre not in v.metres or Base(Kind.METRE, v.metres.index(asked.metre)) not in v.id_of:
                raise UsageError(f"--time-signature {asked.time_signature}: this tokenizer does not have it")
            self.metre = v.metres.index(asked.metre)
        elif given and asked.time_signature != ANY:
            self.metre = prompt.metre
        order = prompt.tracks
        self.remarks += asked.remarks
        pitches = asked.pitches(order)
        exist = np.zeros_like(pitches)
        for base in v.id_of:
            if base.kind == Kind.ON:
                exist[DRUMS if base.drum else slice(0, DRUMS), int(base.value)] = True
        programs = {int(base.value) for base in v.id_of if base.kind == Kind.PROGRAM}
        if asked.programs is not None:
            missing = [rank for rank in asked.programs if rank not in programs]
            if missing:
                raise UsageError(f"--instruments: this tokenizer has no program {missing[0]}")
        elif given and asked.instruments != ANY:
            programs &= prompt.programs
        exist[[rank for rank in range(DRUMS + 1) if rank not in programs]] = False
        self._harmonize(pitches & exist)
        if not self.pitches.any():
            raise UsageError("no note is left by these instruments, scale and pitch ranges together")
        silent = [rank for rank in asked.track_programs(order) if not self.pitches[rank].any()]
        if silent:
            raise UsageError(f"--track: {program_name(silent[0])} does not play here; name it in --instruments too")
        self._spoken_of = order
        self._says = bool(asked.controls)
        if self._says:
            self._check_controls()
        self.polyphony = asked.polyphonies(order)
        self._usable = self.pitches.any(axis=1)
        self._above = np.zeros((DRUMS + 1, 129), dtype=np.int32)
        self._above[:, :-1] = self._fitting[:, :, ::-1].cumsum(axis=2).min(axis=0)[:, ::-1]
        """How many pitches a program has from each pitch on, whatever the chord."""
        self._fewest = int(self._above[self._usable, 0].min())

        static = v.ok.copy()
        for (program, pitch), touches in v.touches.items():
            if program >= 0 and not self.pitches[program, pitch]:
                _bar_beginnings(static, touches)
        static &= ~(v.uses & ~self._usable).any(axis=1)
        if self.tempo is not None:
            static &= (v.tempos == 0) | (v.tempo == self.tempo)
        if self.seconds is not None:  # the closing line moves with the tempo: changes come alone
            static &= (v.tempos == 0) | (v.size == 1)
        if self.metre is not None:
            static &= (v.metre < 0) | (v.metre == self.metre)
        self._static = static
        said = {Kind.METRE: v.has_metres, Kind.TEMPO: v.has_tempos}
        self._opening_kinds = [kind for kind in OPENINGS[v.scheme] if said.get(kind, True)]
        self._before_marks = {Kind.START} if v.scheme == "remi" else set()
        """As in training, marks stand behind the bar token, and its metre."""
        if v.scheme == "remi" and v.has_metres:
            self._before_marks.add(Kind.BAR)
        # each grammar has its own tables, filled as states come by
        self._follows = lru_cache(maxsize=None)(lambda phase: np.isin(v.first, list(v.follows[phase])))
        played = (v.notes > 0) | (v.offs > 0)
        self._plays = lru_cache(maxsize=None)(lambda phase: bool((self._follows(phase) & played).any()))
        self._steady = lru_cache(maxsize=256)(self._steady_table)
        self._times = lru_cache(maxsize=64)(self._times_table)
        self._inherited = lru_cache(maxsize=None)(self._inherited_table)
        self._instruments = lru_cache(maxsize=64)(self._instruments_table)
        self._order = lru_cache(maxsize=1024)(self._order_table)
        self._chords = lru_cache(maxsize=512)(self._chords_table)
        self._opening = lru_cache(maxsize=None)(self._opening_table)
        self._marks = lru_cache(maxsize=64)(
            lambda segment: tuple(v.marks[name] for name in spelled(self.levels(segment)))
        )

    def _check_controls(self) -> None:
        """Raises: UsageError: a control that the vocabulary or the request has no place for."""
        asked = self.constraints
        for control, flag in asked.controls.items():
            if not self.vocabulary.marks.keys() >= {*CONTROLS[control], *TRACKS}:
                raise UsageError(
                    f"{flag}: this model knows no {control.replace('_', ' ')} that could be asked for; expected one "
                    f"trained on what prepare --controls made"
                )
        total = self._all_bars
        if total is None and asked.bars_left:
            raise UsageError("--bars-left: of how many? add --bars")
        if total is not None and asked.last_bar > total:
            raise UsageError(f"--control bars=…-{asked.last_bar}: there will be {total} new bars, counted from 1")
        self.remarks += asked.widened(total)
        changes = [(bars[0] - 1, bars[1]) for *_, bars in asked.asked if bars]
        for first in sorted({0, *(bar for both in changes for bar in both)}):
            for (rank, control), level in self._wanted(first // SEGMENT_BARS).items():
                near = self._nearest({(rank, control): level})[rank, control]
                if near != level:
                    told = f"{control.replace('_', ' ')} of {program_name(rank or 0)}"
                    self.remarks.append(f"{told}: {LEVELS[level]} to {LEVELS[near]}, the nearest there was in training")
        self.remarks = list(dict.fromkeys(self.remarks))

    def levels(self, segment: int) -> Levels:
        """What is asked of a segment of the new music, by its number from 0: the nearest there was in training."""
        return self._nearest(self._wanted(segment))

    def _nearest(self, levels: Levels) -> Levels:
        return levels if self.vocabulary.bins is None else self.vocabulary.bins.nearest(levels)

    def _wanted(self, segment: int) -> Levels:
        first = segment * SEGMENT_BARS + 1
        levels = self.constraints.levels(first, first + SEGMENT_BARS - 1, self._spoken_of)
        if self.constraints.bars_left and self._all_bars is not None:
            levels[None, "bars_left"] = min(self._all_bars - first + 1, MOST_BARS_LEFT) - 1
        return levels

    def _harmonize(self, pitches: np.ndarray) -> None:
        """What may be played, of these (129, 128) pitches, to the chords of the bars and on their strong beats."""
        v, asked = self.vocabulary, self.constraints
        harmony = asked.harmony
        sets, set_of = np.unique(harmony.reshape(-1, 12), axis=0, return_inverse=True)
        self._set_of = set_of.reshape(-1, 2)
        """(bars, 2): which set of pitch classes holds off the strong beats and on them; new bars go round and round."""
        self._classes = sets @ (1 << np.arange(12, dtype=np.int16))
        """(sets,), as bits."""
        self._fitting = np.repeat(pitches[None], len(sets), axis=0)
        """(sets, 129, 128) bool: what each program may begin."""
        self._fitting[:, :DRUMS] &= sets[:, None, np.arange(128) % 12]
        self._strong = np.zeros((len(v.metres), max(v.bar_steps)), dtype=np.int64)
        for row, (beats, _) in zip(self._strong, v.metres, strict=True):
            row[: beats * v.steps_per_beat] = strong_steps(beats, v.steps_per_beat)
        for lacking, program in np.argwhere(pitches.any(axis=1) & ~self._fitting.any(axis=2)):
            chord = asked.progression[int(np.argwhere(self._set_of == lacking)[0, 0])]
            name = program_name(program)
            raise UsageError(f"--chords {chord.name}: none of its tones is in the scale and pitch range of {name}")
        self.pitches = np.logical_or.reduce(self._fitting)
        """(129, 128) bool: what each program may play."""

    def _steady_table(self, phase: Kind, program: int, used: frozenset[int], tempo: float, metre: int) -> Mask:
        """Ids that are right by what seldom changes: one table for all of it, as memory is what a mask costs."""
        allowed = self._static & self._follows(phase) & self._inherited(program)
        return allowed & self._instruments(used) & self._times(tempo, metre)

    def _times_table(self, tempo: float, metre: int) -> Mask:
        """Ids that are right in this tempo and metre."""
        v = self.vocabulary
        allowed = np.ones(len(v), dtype=bool)
        if v.has_tempos:
            allowed &= v.tempo != tempo if self.constraints.tempo == ANY else v.tempos == 0
        held = self.constraints.time_signature != ANY
        if v.scheme == "remi":  # which says the metre of every bar
            allowed &= v.position_last < v.bar_steps[metre]
            allowed &= (v.metre < 0) | (v.metre == metre) | (not held)
        elif v.has_metres:
            allowed &= (v.metre < 0) if held else (v.metre != metre)
        return allowed

    def _inherited_table(self, program: int) -> Mask:
        """Ids that are right where this program is in force."""
        v = self.vocabulary
        allowed: Mask = v.inherits == 0
        if program < 0:
            return allowed
        allowed |= v.inherits == (2 if program == DRUMS else 1)
        for pitch in np.flatnonzero(~self.pitches[program]):
            _bar_beginnings(allowed, v.touches.get((-1, int(pitch)), ()))
        return allowed

    def _instruments_table(self, used: frozenset[int]) -> Mask:
        """Ids with which there are no more instruments than a file can hold; whatever plays around a hole."""
        v = self.vocabulary
        if self._ahead is not None:
            return np.ones(len(v), dtype=bool)
        melodic = [rank for rank in used if rank != DRUMS]
        left = max(0, MAX_INSTRUMENTS - len(melodic))
        new = np.ones(DRUMS + 1, dtype=np.int32)
        new[[*melodic, DRUMS]] = 0
        many = np.flatnonzero(v.programs > left)
        allowed = np.ones(len(v), dtype=bool)
        allowed[many] = v.uses[many] @ new <= left
        return allowed

    def _order_table(self, program: int, low: int, placed: bool) -> Mask:
        """Ids that go on in the order of one moment: programs rise; and, where each note says its own, its pitches."""
        v = self.vocabulary
        P = v.program
        if v.each_program:
            allowed = ~v.program_now | (program < P) | ((program == P) & (v.program_low > low)) | (not placed)
            again = (program < P) | ((program == P) & (v.program_low > v.high))
            return allowed & (~v.program_again | again)
        rises = (P < 0) | (program < P)
        allowed = rises | (~v.program_again & (program != P))
        return allowed & (rises | ~v.program_now) if placed else allowed

    def _chords_table(self, bar: int, now: int, metre: int) -> Mask:
        """Ids whose notes fit the chords of their bars and the beats on which they begin; `bar` is of the chords."""
        v = self.vocabulary
        new_bar, in_bar, steps, metres = v.moments.T
        metres = np.where(metres < 0, metre, metres)
        bars, steps = np.divmod(np.where(in_bar, steps, now + steps), np.array(v.bar_steps)[metres])
        fit = self._classes[self._set_of[(bar + new_bar + bars) % len(self._set_of), self._strong[metres, steps]]]
        allowed = np.ones(len(v), dtype=bool)
        allowed[v.tone_id[(v.tone_classes & ~fit[v.tone_moment]) != 0]] = False
        return allowed

    def _opening_table(self, phase: Kind) -> Mask:
        """Ids that go on in the opening of a piece."""
        v = self.vocabulary
        rest = self._opening_kinds
        if phase in rest:
            rest = rest[rest.index(phase) + 1 :]
        allowed: Mask = self._static & (v.first == rest[0]) & (v.size <= len(rest))
        for id in np.flatnonzero(allowed):
            base = v.tokens[id]
            same = all(token.kind == kind for token, kind in zip(base, rest, strict=False))
            allowed[id] = same and not any(token.kind == Kind.POSITION and token.value for token in base)
        return allowed

    # where the new music begins

    def _read(self, prompt_ids: Sequence[int]) -> State:
        return self.reader.read(
            self.reader.start(), [token for id in prompt_ids for token in self.vocabulary.tokens[id]]
        )

    def _begin(self, state: State) -> tuple[list[int], State]:
        """The ids that lead from the end of the prompt to the bar line at which the new music begins."""
        v = self.vocabulary
        tokens: list[Base] = []
        if state.phase != Kind.START:
            half = v.steps_per_beat // 2 * v.ticks_per_step[state.metre]
            bar = v.bar_ticks[state.metre]
            ends = [note.end for note in state.sounding if note.end < FOREVER]
            reached = self.reader.tick(state)
            if self._ahead is not None:
                boundary = state.bar_start + self._ahead * bar
            else:
                boundary = state.bar_start + (bar if v.scheme == "remi" or state.now > 0 or state.content else 0)
                while boundary < max([reached, *(end - half for end in ends)]):
                    boundary += bar
            self.boundary = boundary
            tokens = self._leading(state, boundary)
            if boundary == reached and (
                state.phase in (Kind.METRE, Kind.TEMPO) or (state.phase == Kind.OFF and tokens)
            ):
                state, tokens = self._restated(state)
        ids = v.spell(tokens)
        state = self.reader.read(state, tokens)
        begin_bar = state.bar
        if v.scheme == "structured" and state.phase != Kind.START:  # silence is written with the note behind it
            begin_bar += (self.boundary - state.bar_start) // v.bar_ticks[state.metre]
        self.first_bar = begin_bar - self._bars_done
        if self.bars is not None:
            self.last_bar = begin_bar + self.bars
        state = self.reader.begin(state, self.boundary)
        if state.bar == begin_bar:
            state = state._replace(owed=self._marks(self._bars_done // SEGMENT_BARS))
        return ids, state

    def _restated(self, state: State) -> tuple[State, list[Base]]:
        """Take the last moment off the prompt, which ends on the bar line: tempo and metre come first in a moment."""
        v = self.vocabulary
        metre = state.metre if self.metre is None else self.metre
        tempo = state.tempo if self.tempo is None else self.tempo
        moment: list[Base] = []
        while not any(token.kind == Kind.SHIFT for token in moment):
            moment = [*v.tokens[self.prompt_ids.pop()], *moment]
        last = max(i for i, token in enumerate(moment) if token.kind == Kind.SHIFT) + 1
        before = self._read(self.prompt_ids)
        there = self.reader.read(before, moment[:last])
        changes = [Base(Kind.METRE, metre)] if v.has_metres and metre != there.metre else []
        changes += [Base(Kind.TEMPO, tempo)] if v.has_tempos and tempo != there.tempo else []
        kept = [token for token in moment[last:] if token.kind not in (Kind.METRE, Kind.TEMPO)]
        return before, [*moment[:last], *changes, *kept]

    def _leading(self, state: State, boundary: int) -> list[Base]:
        v = self.vocabulary
        metre = state.metre if self.metre is None else self.metre
        restate = [Base(Kind.METRE, metre)] if v.has_metres else []
        tempo = [Base(Kind.TEMPO, self.tempo)] if self.tempo is not None and self.tempo != state.tempo else []
        if v.scheme == "remi":
            silent = (boundary - state.bar_start) // v.bar_ticks[state.metre] - 1
            before = [Base(Kind.BAR), *([Base(Kind.METRE, state.metre)] if v.has_metres else [])] * silent
            return [*before, Base(Kind.BAR), *restate, *([Base(Kind.POSITION, 0), *tempo] if tempo else [])]
        if v.scheme == "structured":
            return []
        shifts = v.shifted((boundary - self.reader.tick(state)) // v.ticks_per_step[state.metre])
        return [*shifts, *(restate if metre != state.metre else []), *tempo]

    # the mask

    def mask(self, state: State) -> Mask:
        """(V,) bool: the ids that may come next; at least one."""
        v = self.vocabulary
        if state.ended:
            return np.ones(len(v), dtype=bool)
        if state.owed and state.phase not in self._before_marks:
            allowed = np.zeros(len(v), dtype=bool)
            allowed[state.owed[0]] = True
            return allowed
        if self._opens(state):
            return self._opening(state.phase)
        allowed = self._steady(state.phase, state.program, state.programs, state.tempo, state.metre)
        allowed = allowed & self._order(state.program, state.low if v.each_program else -1, state.placed)
        allowed &= v.low > state.low
        if v.scheme == "remi":
            allowed &= v.latest >= state.now
        elif v.has_metres and state.now > 0:
            allowed[v.rebarred] = False
        if state.sounding:
            if self._plays(state.phase):
                self._bar_overlaps(state, allowed)
        elif v.scheme == "midilike":
            allowed &= v.offs == 0
        if self.constraints.progression:
            bar = (state.bar - self.first_bar) % len(self._set_of)
            allowed &= self._chords(bar, max(state.now, 0), state.metre)
        self._keep_counts(state, allowed)
        self._keep_room(state, allowed)
        if v.scheme == "structured":
            allowed &= (v.shift_first == NONE) | (self._landing(state, v.shift_first) >= self.boundary)
        deadline = self._deadline(state)
        self._close(state, deadline, allowed)
        may_end = deadline == FOREVER and self.complete(state)
        allowed[v.eos_id] = may_end and not (v.scheme == "midilike" and state.sounding)
        if state.phase == Kind.SHIFT and v.scheme != "structured" and state.shift < v.shifts[-1]:
            # as `encode` writes a pause: the longest first, the others falling
            falling = allowed & ((v.shift_first == NONE) | (v.shift_first < state.shift))
            if falling.any():
                allowed = falling
        if not allowed.any():  # constraints may leave nothing: then the piece ends here
            allowed[v.eos_id] = True
        return allowed

    def _opens(self, state: State) -> bool:
        """Whether the metre and the tempo of the piece are still to be said."""
        return not state.tempo or (state.phase == Kind.START and bool(self._opening_kinds))

    def _touches(self, state: State, program: int, pitch: int) -> list[Touch]:
        """The ids that begin or end this note, by a program of their own or the one in force."""
        known = self.vocabulary.touches
        own = known.get((program, pitch), [])
        return own + known.get((-1, pitch), []) if program == state.program else own

    def _bar_overlaps(self, state: State, allowed: Mask) -> None:
        """A note begins where none of its pitch and program sounds, and ends where one does."""
        v = self.vocabulary
        if v.scheme == "midilike":
            ended = np.zeros(len(v), dtype=v.offs.dtype)
            for program, pitch in {(note.program, note.pitch) for note in state.sounding}:
                for touch in self._touches(state, program, pitch):
                    if touch.begins:
                        allowed[touch.ids] = False
                    else:
                        ended[touch.ids] += 1
            allowed &= ended == v.offs
            return
        now = self.reader.tick(state)
        line, next_line = state.bar_start, state.bar_start + v.bar_ticks[state.metre]
        for note in state.sounding:
            for touch in self._touches(state, note.program, note.pitch):
                origin = next_line if touch.new_bar else line if touch.in_bar else now
                tick = v.ticks_per_step[state.metre if touch.metre < 0 else touch.metre]
                if note.end < FOREVER:  # what comes before it ends is barred
                    if before := bisect_left(touch.steps, -((origin - note.end) // tick)):
                        allowed[touch.ids[:before]] = False
                else:  # it is being written, and ends with the duration that an id begins with
                    lead = v.lead_duration[touch.ids]
                    early = origin + np.array(touch.steps) * tick < now + lead * tick
                    allowed[touch.ids[early | (lead == 0)]] = False

    def _keep_counts(self, state: State, allowed: Mask) -> None:
        """Not more notes at once, or in a beat, than were asked for."""
        v, asked = self.vocabulary, self.constraints
        if asked.max_polyphony is None and asked.max_notes_per_beat is None and not self.polyphony:
            return
        onsets = self._onsets(state)

        def still(notes: list[Sounding]) -> Any:
            """How many of these sound where each id has its first note."""
            return sum(onsets < note.end for note in notes)

        new = [note for note in state.sounding if note.new]
        if asked.max_polyphony is not None:
            allowed &= (v.peak <= 0) | (still(new) + v.peak <= asked.max_polyphony)
        for program, most in self.polyphony.items():  # all notes of an id at once: rather too strict
            ours = v.uses[:, program] | (state.program == program) & ((v.inherits > 0) | (v.program < 0))
            mine = [note for note in new if note.program == program]
            allowed &= ~ours | (v.notes == 0) | (still(mine) + v.notes <= most)
        if asked.max_notes_per_beat is not None:
            beat = self.reader.beat(state)
            there = state.notes_in_beat if state.beat == beat else 0
            same = onsets < beat + v.steps_per_beat * v.ticks_per_step[state.metre]
            allowed &= (v.notes == 0) | (v.notes + there * same <= asked.max_notes_per_beat)

    def _onsets(self, state: State) -> np.ndarray:
        """(V,) ticks at which the first note of each id begins; where a note must follow the id, that one too."""
        v = self.vocabulary
        tick = v.ticks_per_step[state.metre]
        origin = np.where(v.onset_in_bar, state.bar_start, self.reader.tick(state))
        onsets: np.ndarray = origin + v.new_bar * v.bar_ticks[state.metre]
        onsets += v.onset_first * np.where(v.own_tick > 0, v.own_tick, tick)
        return onsets

    def _landing(self, state: State, steps: np.ndarray) -> np.ndarray:
        """Ticks that shifts by `steps` from now lead to."""
        landing: np.ndarray = self.reader.tick(state) + steps * self.vocabulary.ticks_per_step[state.metre]
        return landing

    def _set_at(self, state: State, ticks: Any) -> Any:
        """Which sets of pitch classes hold at a tick, or at some, by the metre now."""
        v = self.vocabulary
        bars, within = np.divmod(ticks - state.bar_start, v.bar_ticks[state.metre])
        strong = self._strong[state.metre, within // v.ticks_per_step[state.metre]]
        return self._set_of[(state.bar - self.first_bar + bars) % len(self._set_of), strong]

    def _keep_room(self, state: State, allowed: Mask) -> None:
        """Where a note must follow an id, there is one that may: no dead ends."""
        v = self.vocabulary
        others = len(state.sounding)
        if self.polyphony:
            allowed &= ~v.demands | (v.size == 1)
        elif self._fewest <= others + v.most_notes:
            allowed &= ~v.demands | (v.size == 1) | (others + v.notes < self._fewest)
        tight = self._fewest <= others + 1 or bool(self.polyphony)
        if not tight and not v.each_program:
            return
        ends = self._ends(state)
        now = self.reader.tick(state)
        free = self._fitting[self._set_at(state, now)] & (ends <= now)
        if tight:
            self._keep_free(state, allowed, ends, free)
        if not v.each_program:
            return
        if state.placed:
            same = bool(free[state.program, state.low + 1 :].any()) if state.program >= 0 else False
            higher = bool(free[state.program + 1 :].any())
            if not same:  # another note of this program in this moment: none is left
                allowed &= ~(v.tail_now & (v.program == state.program))
            if not same and not higher:
                allowed &= ~(v.tail_now & (v.program < 0))
        tailed = np.flatnonzero(v.tail_program > -2)
        programs = np.where(v.tail_program[tailed] < 0, max(state.program, 0), v.tail_program[tailed])
        pitches = np.maximum(v.tail_pitch[tailed], state.low) + 1
        allowed[tailed] &= self._above[programs, pitches] > others + v.notes[tailed]

    def _ends(self, state: State) -> np.ndarray:
        """(129, 128) ticks until which each program cannot begin each pitch again."""
        ends = np.zeros((DRUMS + 1, 128), dtype=np.int64)
        for note in state.sounding:  # those of a prompt may overlap
            ends[note.program, note.pitch] = max(ends[note.program, note.pitch], note.end)
        for program, most in self.polyphony.items():
            until = sorted(note.end for note in state.sounding if note.new and note.program == program)
            if len(until) >= most:
                ends[program] = np.maximum(ends[program], until[len(until) - most])
        return ends

    def _keep_free(self, state: State, allowed: Mask, ends: np.ndarray, free: np.ndarray) -> None:
        """Bar, in place, base tokens behind which no note could begin; `ends` and `free` are (129, 128)."""
        v = self.vocabulary
        completing = self._completing(state)
        if state.phase != Kind.PROGRAM:
            # behind such a token a note must begin; tsd and midilike have none: there more time may pass
            shifts = v.scheme == "structured"
            ids, steps = v.base_ids[Kind.SHIFT if shifts else Kind.POSITION]
            landing = self._landing(state, steps if shifts else steps - max(state.now, 0))
            stays = shifts & (steps == 0)
            sets = self._set_at(state, landing)
            soonest = np.zeros(len(self._fitting), dtype=np.int64)
            for i in np.unique(sets):
                soonest[i] = np.where(self._fitting[i], ends, FOREVER).min()
            allowed[ids] &= stays | (landing >= soonest[sets])
            if self.constraints.max_bar_repeats is not None:
                for id, there in zip(ids, landing, strict=True):
                    last = self._completing(self.reader.read(state, v.tokens[id])) if allowed[id] else None
                    if last is not None and last[0] == self._step_of(state, there):
                        left = self._fitting[self._set_at(state, there)] & (ends <= there)
                        left[last[1], last[2]] = False
                        allowed[id] = left.any()
        if completing is not None and completing[0] == max(state.now, 0):
            free = free.copy()
            free[completing[1], completing[2]] = False
        ids, values = v.base_ids[Kind.PROGRAM]
        open_for = {note.program for note in state.sounding} if v.scheme == "midilike" else set()
        allowed[ids] &= free[values].any(axis=1) | np.isin(values, list(open_for))

    def _close(self, state: State, deadline: int, allowed: Mask) -> None:
        """Nothing beyond the closing line; what steps over it ends the piece. Bars are not repeated too often."""
        v = self.vocabulary
        over = np.zeros(len(v), dtype=bool)
        if deadline - self.reader.tick(state) <= v.farthest:  # elsewhere no id reaches the line
            self._stay_inside(state, deadline, allowed)
            over = self._follows(state.phase) & self._oversteps(state, deadline, v.first, v.first_value)
            allowed[over] = state.notes > 0
        if self.constraints.max_bar_repeats is not None:
            self._vary(state, self.constraints.max_bar_repeats, deadline, over, allowed)

    def _vary(self, state: State, most: int, deadline: int, over: Mask, allowed: Mask) -> None:
        """Bar, in place, what makes the same bar come more than `most` times in a row: its last note, or silence."""
        v = self.vocabulary
        bar = v.bar_ticks[state.metre]
        begin = max(state.bar_start, self.boundary)
        if v.scheme == "remi":
            passed = v.new_bar.astype(np.int64)
        else:
            lead = np.minimum(v.onset_first, np.where(v.notes > 0, NONE, v.advance))
            passed = np.where(v.advance > 0, (self._landing(state, lead) - begin) // bar, 0)
        passed = np.where(over, -(-(deadline - begin) // bar), passed)
        # of the bars behind this one, those into which nothing sounds
        rung = min(max((note.end for note in state.sounding), default=0) - begin, NONE * bar)
        silent = np.maximum(0, passed - 1 - max(0, -(-rung // bar) - 1))
        if not state.content and not state.rang:
            silent += 1 + _run(state.contents, ())
        allowed &= (passed <= 0) | (silent <= most)
        completing = self._completing(state)
        if completing is None:
            return
        repeated = state.contents[-1]
        step, program, pitch = completing
        for touch in self._touches(state, program, pitch):
            if not touch.begins or touch.new_bar:
                continue
            last = step if touch.in_bar else step - max(state.now, 0)
            for id in touch.ids[: bisect_right(touch.steps, last)]:  # its first such note; others may follow
                if allowed[id] and not over[id]:
                    behind = self.reader.read(state, v.tokens[id])
                    bars = [*behind.contents, behind.content]
                    at = len(bars) - 1 - (behind.bar - state.bar)
                    allowed[id] = at < 0 or bars[at] != repeated

    def _step_of(self, state: State, tick: int) -> int:
        """The step in its bar of a tick, by the metre now."""
        v = self.vocabulary
        return int(tick - state.bar_start) % v.bar_ticks[state.metre] // v.ticks_per_step[state.metre]

    def _completing(self, state: State) -> tuple[int, int, int] | None:
        """The (step, program, pitch) of the last note of a bar that may not come once more, if this bar leads to it."""
        most = self.constraints.max_bar_repeats
        repeated = state.contents[-1] if state.contents else ()
        if most is None or not repeated or repeated[0][0] < 0 or _run(state.contents, repeated) < most:
            return None
        return repeated[-1] if repeated[: len(state.content)] == state.content != repeated else None

    def _stay_inside(self, state: State, deadline: int, allowed: Mask) -> None:
        """Bar, in place, ids that reach beyond the closing line."""
        v = self.vocabulary
        tick = v.ticks_per_step[state.metre]
        bar = v.bar_ticks[state.metre]
        room = deadline - state.bar_start
        now = max(state.now, 0)
        ends = room // tick
        last = ends - 1
        inside = (v.end_bar <= ends) & (v.end_now <= ends - now) & (v.advance <= last - now) & (v.reach <= last)
        ringing = max((note.end for note in state.sounding if note.new and note.end < FOREVER), default=0)
        some = v.rebarred
        if len(some):
            per_step = np.where(v.own_tick[some] > 0, v.own_tick[some], tick)
            before = v.new_bar[some] * bar
            if self.last_bar is not None:
                bars = np.where(v.own_bar[some] > 0, v.own_bar[some], bar)
                left = (self.last_bar - state.bar - v.new_bar[some]) * bars
            else:
                left = room - before
            fits = (v.end_bar[some] * per_step <= left) & (v.end_now[some] * per_step <= left)
            fits &= (np.maximum(np.maximum(v.reach, v.advance)[some], 0) + 1) * per_step <= left
            fits &= ringing - state.bar_start - before <= left
            inside[some] = fits
        if self.seconds is not None and v.has_tempos:
            for id, tempo in zip(*v.base_ids[Kind.TEMPO], strict=True):
                if allowed[id]:
                    moved = self._deadline(self._with_tempo(state, float(tempo)))
                    inside[id] = moved >= max(self.reader.tick(state) + tick, ringing)
        allowed &= inside

    def _oversteps(self, state: State, deadline: int, kind: Any, value: Any) -> Any:
        """Whether what begins with a base token (kinds and values, or one of each) leaves no step before the line."""
        v = self.vocabulary
        room = deadline - state.bar_start
        last = room // v.ticks_per_step[state.metre] - 1
        over = (kind == Kind.SHIFT) & (value > last - max(state.now, 0))
        if v.bar_ticks[state.metre] + max(v.ticks_per_step) > room:  # the line is in this bar, or at its end
            over |= kind == Kind.BAR
            over |= (kind == Kind.POSITION) & (value > last) & (value < v.bar_steps[state.metre])
        return over

    def _deadline(self, state: State) -> int:
        """The tick of the closing line, by the metre and the tempo now; FOREVER where none was asked for."""
        if self._opens(state):
            return FOREVER
        if self.last_bar is not None:
            return state.bar_start + (self.last_bar - state.bar) * self.vocabulary.bar_ticks[state.metre]
        if self.seconds is not None:
            left = (self.seconds - state.tempo_seconds) * state.tempo / 60 * self.vocabulary.ticks_per_quarter
            return state.tempo_tick + floor(left)
        return FOREVER

    def _with_tempo(self, state: State, tempo: float) -> State:
        tick = self.reader.tick(state)
        return state._replace(tempo=tempo, tempo_tick=tick, tempo_seconds=self.reader.seconds(state, tick))

    # going on

    def advance(self, state: State, id: int) -> State:
        """The state behind an id; one that ends the piece is not part of it."""
        v = self.vocabulary
        if state.ended:
            return state
        if state.owed and id == state.owed[0]:
            return state._replace(owed=state.owed[1:], completed=())
        over = self._oversteps(state, self._deadline(state), int(v.first[id]), int(v.first_value[id]))
        if id == v.eos_id or over:
            return state._replace(ended=True, completed=())
        behind = self.reader.read(state, v.tokens[id])
        if self._says and behind.bar > state.bar:
            segment = (behind.bar - self.first_bar) // SEGMENT_BARS
            if segment > (state.bar - self.first_bar) // SEGMENT_BARS:
                behind = behind._replace(owed=self._marks(segment))
        return behind

    def extend(self, state: State, id: int) -> State:
        """`advance` without regard to the closing line: for what closes a piece."""
        return self.reader.read(state, self.vocabulary.tokens[id])

    def end(self, state: State) -> int | None:
        """The tick of the closing line of a piece of a given length, else None."""
        deadline = self._deadline(state)
        return None if deadline == FOREVER else deadline

    def complete(self, state: State) -> bool:
        """Whether a piece may be cut here, with `closing` behind it."""
        last = (Kind.OFF, Kind.VELOCITY) if self.vocabulary.scheme == "midilike" else (Kind.DURATION,)
        return state.notes > 0 and state.phase in last

    def dangling(self, state: State) -> bool:
        """Whether something must follow."""
        v = self.vocabulary
        kinds = v.before_note | {Kind.ON}
        if v.has_metres:
            kinds.add(Kind.BAR)
        if v.scheme != "midilike":
            kinds.add(Kind.VELOCITY)
        return state.phase in kinds

    def trimmed(self, state: State, ids: Sequence[int]) -> tuple[list[int], State]:
        """As much of the ids behind a state as ends with a complete note, and the state behind that."""
        tokens = [token for id in ids for token in self.vocabulary.tokens[id]]
        kept, best, completed = 0, state, state.completed
        for i, token in enumerate(tokens):
            state = self.reader.read(state, (token,))
            completed += state.completed
            if self.complete(state):
                kept, best = i + 1, state
        return self.vocabulary.spell(tokens[:kept]), best._replace(completed=completed)

    def reserve(self, state: State) -> int:
        """The most ids that `closing` may need here."""
        return 2 + 2 * len(state.sounding) if self.vocabulary.scheme == "midilike" and state.sounding else 0

    def closing(self, state: State) -> list[int]:
        """The ids that end what still sounds: at the closing line, or else at the next bar line."""
        v = self.vocabulary
        if v.scheme != "midilike" or not state.sounding:
            return []
        deadline = self.end(state)
        if deadline is None:
            deadline = state.bar_start + v.bar_ticks[state.metre]
        tokens = v.shifted((deadline - self.reader.tick(state)) // v.ticks_per_step[state.metre])
        program = state.program
        for note in sorted(state.sounding, key=lambda note: (note.program, note.onset, note.pitch)):
            if note.program != program:
                tokens.append(Base(Kind.PROGRAM, note.program))
                program = note.program
            tokens.append(Base(Kind.OFF, note.pitch, program == DRUMS))
        return v.spell(tokens)


def _bar_beginnings(allowed: Mask, touches: Iterable[Touch]) -> None:
    for touch in touches:
        if touch.begins:
            allowed[touch.ids] = False


def _run(bars: Sequence[tuple[Any, ...]], content: tuple[Any, ...]) -> int:
    """How many of the last bars are the same as `content`, counted backwards until one is not."""
    count = 0
    for bar in reversed(bars):
        if bar != content:
            break
        count += 1
    return count
