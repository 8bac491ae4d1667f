"""What each id of a music vocabulary does, worked out once, as one array per fact: what the grammar looks at.

A learned id stands for several base tokens. It is walked through with an unknown beginning: which program, which
moment and which bar it starts in are known only when it is sampled. What the walk needs of that beginning is written
down as numbers, so that a state can be compared with all ids in a few array operations.

An example, in REMI: an id that stands for Position_12 Pitch_60 Velocity_79 Duration_0.12.24 Position_24 Program_40 has
position_first 12 and position_last 24 (it may come before step 12 of a bar that has more than 24), inherits 1 (its
pitch is for the program in force, which must be melodic), program 40 (which must not be the one in force), end_bar 24
(its note must end there, inside the piece), notes 2 and demands (behind it a second note must begin, so one must be
possible), and it touches pitch 60 of the program in force at step 12 (which must not sound any more).

Units: a step is the smallest duration, a fraction of the beat of the metre; a tick is the longest time that divides
the step of every metre; programs are ranked 0 to 127, drums 128, the order in which one moment is written.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import lcm

import numpy as np

from musicgpt.errors import TokenizerError
from musicgpt.marks import DRUMS
from musicgpt.midi_tokenizer import MidiTokenizer


class Kind(IntEnum):
    """Of a base token; START is the kind before the first, MARK that of all that is no music."""

    OTHER, BAR, METRE, POSITION, SHIFT, TEMPO, PROGRAM, ON, OFF, VELOCITY, DURATION, START, MARK = range(13)


KINDS = {
    "Bar": Kind.BAR,
    "TimeSig": Kind.METRE,
    "Position": Kind.POSITION,
    "TimeShift": Kind.SHIFT,
    "Tempo": Kind.TEMPO,
    "Program": Kind.PROGRAM,
    "Pitch": Kind.ON,
    "PitchDrum": Kind.ON,
    "NoteOn": Kind.ON,
    "DrumOn": Kind.ON,
    "NoteOff": Kind.OFF,
    "DrumOff": Kind.OFF,
    "Velocity": Kind.VELOCITY,
    "Duration": Kind.DURATION,
}

NONE = 30_000
"""Later than any time, higher than any pitch: there is no such thing in this id."""


@dataclass(frozen=True)
class Base:
    """One base token; `value` is a pitch, rank, steps, index of `Vocabulary.metres`, tempo or id (of a mark)."""

    kind: Kind
    value: float = 0
    drum: bool = False


@dataclass(frozen=True)
class Touch:
    """Ids whose first beginning, or end, of one program and pitch is counted in the same way."""

    begins: bool
    in_bar: bool
    """Whether its steps are counted from a bar line, which is the next with `new_bar`; else from now."""
    new_bar: bool
    metre: int
    """The one that the ids say before; -1: none."""
    steps: tuple[int, ...]
    """One for each id, rising."""
    ids: np.ndarray


class Vocabulary:
    """All ids of a tokenizer, as arrays of one entry per id; V ids.

    Raises:
        TokenizerError: the tokenizer writes something that is not followed here.
    """

    def __init__(self, tokenizer: MidiTokenizer) -> None:
        config = tokenizer.wrapped.config
        for feature in ("use_rests", "use_pitch_intervals", "use_chords", "use_sustain_pedals", "use_pitch_bends"):
            if getattr(config, feature, False):
                raise TokenizerError(f"this tokenizer was made with {feature}, which generation does not follow")
        if not config.use_velocities:
            raise TokenizerError("this tokenizer writes no velocities, which generation needs")
        resolutions = config.beat_res.values()
        if lcm(*resolutions) != max(resolutions):
            raise TokenizerError(f"this tokenizer divides beats by {sorted(resolutions)}: one must divide the other")
        if not {*config.programs} <= {*config.use_note_duration_programs}:
            raise TokenizerError("this tokenizer writes no durations for some programs, which generation needs")
        self.scheme = tokenizer.name
        self.each_program = self.scheme == "structured" or not config.program_changes
        """Whether a program stands before every note, or only where it changes."""
        self.has_metres = bool(config.use_time_signatures) and self.scheme != "structured"
        self.has_tempos = bool(config.use_tempos) and self.scheme != "structured"
        self.steps_per_beat = lcm(*config.beat_res.values())
        signatures = set(tokenizer.wrapped.time_signatures) if self.has_metres else set()
        self.metres = sorted(signatures | {(4, 4)}, key=lambda m: (m[1], m[0]))
        self.default_metre = self.metres.index((4, 4))
        unit = max(d for _, d in self.metres)
        self.ticks_per_quarter = self.steps_per_beat * unit // 4
        self.ticks_per_step = [unit // d for _, d in self.metres]
        self.bar_steps = [n * self.steps_per_beat for n, _ in self.metres]
        self.bar_ticks = [n * self.steps_per_beat * unit // d for n, d in self.metres]
        """Of each metre."""
        self.eos_id = tokenizer.eos_id
        self._pitches = range(config.pitch_range[0], config.pitch_range[1] + 1)
        self.marks = {token: tokenizer.mark(token) for token in tokenizer.wrapped.special_tokens}
        """Their ids."""
        self.bins = tokenizer.bins
        self._position = self.steps_per_beat // config.max_num_pos_per_beat
        self.tokens = [tuple(self._base(token) for token in tokens) for tokens in tokenizer.expansions]
        self.id_of = {base[0]: id for id, base in reversed(list(enumerate(self.tokens))) if len(base) == 1}
        """The id of a base token alone."""
        self.spelled = {base: id for id, base in reversed(list(enumerate(self.tokens))) if base}
        self.base_ids = {
            kind: (
                np.array([id for base, id in self.id_of.items() if base.kind == kind], dtype=np.int64),
                np.array([base.value for base in self.id_of if base.kind == kind], dtype=dtype),
            )
            for kind, dtype in ((Kind.POSITION, int), (Kind.SHIFT, int), (Kind.PROGRAM, int), (Kind.TEMPO, float))
        }
        """The ids of base tokens of a kind, and their values."""
        self.shifts = sorted(int(b.value) for b in self.id_of if b.kind == Kind.SHIFT and b.value > 0)
        self.follows = self._follows()
        self.before_note = {Kind.POSITION, Kind.PROGRAM} | ({Kind.SHIFT} if self.scheme == "structured" else set())
        """Kinds behind which a note must begin in the same moment."""
        self._summarize()

    def __len__(self) -> int:
        return len(self.tokens)

    def _base(self, token: str) -> Base:
        if token in self.marks:
            return Base(Kind.MARK, self.marks[token])
        name, _, value = token.partition("_")
        kind = KINDS.get(name, Kind.OTHER)
        if kind == Kind.BAR and value != "None":
            raise TokenizerError("this tokenizer numbers its bars, or writes their ends: generation does not follow")
        if kind == Kind.METRE:
            n, d = value.split("/")
            return Base(kind, self.metres.index((int(n), int(d))))
        if kind == Kind.POSITION:
            return Base(kind, int(value) * self._position)
        if kind in (Kind.SHIFT, Kind.DURATION):
            beats, parts, resolution = (int(part) for part in value.split("."))
            return Base(kind, beats * self.steps_per_beat + parts * self.steps_per_beat // resolution)
        if kind == Kind.TEMPO:
            return Base(kind, float(value))
        if kind == Kind.PROGRAM:
            return Base(kind, int(value) % 129)  # drums are written -1
        if kind in (Kind.ON, Kind.OFF) and int(value) not in self._pitches:
            return Base(Kind.OTHER)  # drums beyond the range of pitches: miditok does not decode them
        if kind in (Kind.ON, Kind.OFF, Kind.VELOCITY):
            return Base(kind, int(value), name in ("PitchDrum", "DrumOn", "DrumOff"))
        return Base(kind)

    def _follows(self) -> dict[Kind, frozenset[Kind]]:
        """Kind -> the kinds that may come next."""
        K = Kind
        begins = {K.PROGRAM} if self.each_program else {K.ON, K.PROGRAM}
        if self.scheme == "structured":
            table: dict[Kind, set[Kind]] = {K.START: {K.SHIFT}, K.SHIFT: {K.PROGRAM}, K.DURATION: {K.SHIFT}}
        elif self.scheme == "remi":
            leaves = {K.POSITION, K.BAR}
            table = {
                K.START: {K.BAR},
                K.BAR: {K.METRE} if self.has_metres else leaves,
                K.METRE: leaves,
                K.POSITION: {K.TEMPO} | begins,
                K.TEMPO: begins | leaves,
                K.DURATION: begins | leaves,
            }
        else:
            plays = begins | {K.OFF} if self.scheme == "midilike" else begins
            table = {
                K.START: {K.METRE} if self.has_metres else {K.TEMPO} if self.has_tempos else plays | {K.SHIFT},
                K.METRE: {K.TEMPO, K.SHIFT} | plays,
                K.TEMPO: {K.SHIFT} | plays,
                K.SHIFT: {K.SHIFT, K.METRE, K.TEMPO} | plays,
                K.DURATION: {K.SHIFT} | plays,
                # the ends of notes are written before the beginnings: a note ends in a moment behind its own
                K.VELOCITY: {K.SHIFT} | begins,
                K.OFF: {K.SHIFT} | plays,
            }
        table[K.PROGRAM] = {K.ON, K.OFF} if self.scheme == "midilike" else {K.ON}
        table[K.ON] = {K.VELOCITY}
        if self.scheme != "midilike":
            table[K.VELOCITY] = {K.DURATION}
        return {kind: frozenset(after) for kind, after in table.items()}

    def _summarize(self) -> None:
        walks = [self._walk(base) for base in self.tokens]

        def column(name: str, dtype: type = np.int32) -> np.ndarray:
            return np.array([getattr(walk, name) for walk in walks], dtype=dtype)

        self.size = np.array([len(base) for base in self.tokens])
        self.ok = column("ok", bool)
        self.first = np.array([base[0].kind if base else Kind.OTHER for base in self.tokens])
        self.first_value = np.array([int(base[0].value) if base else 0 for base in self.tokens])
        self.metre = column("metre")
        says = self.metre >= 0
        self.own_tick = np.where(says, np.array(self.ticks_per_step)[self.metre], 0)
        self.own_bar = np.where(says, np.array(self.bar_ticks)[self.metre], 0)
        """Ticks of a step, and of a bar, in the metre that an id says; 0: none."""
        self.tempo = column("tempo", np.float64)
        self.tempos = column("tempos")
        self.position_last = column("position_last")
        self.reach = column("reach")
        self.shift_first = column("shift_first")
        self.advance = column("advance")
        self.end_now = column("end_now")
        self.end_bar = column("end_bar")
        self.lead_duration = column("lead_duration")
        # int16 for what every mask looks at: of so many ids, memory is what a mask costs
        self.latest = np.minimum(column("position_first", np.int16) - 1, column("now_limit", np.int16))
        """The last step in its bar at which an id may begin: its first position rises, its notes do not overlap."""
        self.inherits = column("inherits")
        self.low = column("low", np.int16)
        self.program = column("program_first")
        self.program_low = column("program_low")
        self.program_again = column("program_again", bool)
        self.program_now = column("program_now", bool)
        self.high = column("high")
        self.onset_in_bar = column("onset_in_bar", bool)
        self.onset_first = column("onset_first")
        self.notes = column("notes")
        self.peak = column("peak")
        self.offs = column("offs", np.int16)
        self.tail_program = column("tail_program")
        self.tail_pitch = column("tail_pitch")
        self.tail_now = column("tail_now", bool)
        self.new_bar = self.first == Kind.BAR
        self.demands = np.array([bool(base) and base[-1].kind in self.before_note for base in self.tokens])
        """Ids that end with such a kind."""
        self.uses = np.zeros((len(self), DRUMS + 1), dtype=bool)
        for id, base in enumerate(self.tokens):
            for token in base:
                if token.kind == Kind.PROGRAM:
                    self.uses[id, int(token.value)] = True
        self.programs = self.uses.sum(axis=1)
        """How many an id says."""
        self.rebarred = np.flatnonzero(self.ok & (self.new_bar | says))
        """Ids whose times are counted from a bar line, or by a metre, other than that of the moment before."""
        steps = max(int(column.max(initial=0)) for column in (self.end_now, self.end_bar, self.advance, self.reach))
        self.farthest = steps * max(self.ticks_per_step) + 2 * max(self.bar_ticks)
        """No id reaches farther, in ticks, whatever it says of its metre."""
        self.most_notes = int(self.notes.max(initial=0))

        groups: dict[tuple[tuple[int, int], tuple[bool, bool, bool, int]], list[tuple[int, int]]] = defaultdict(list)
        for id, walk in enumerate(walks):
            for key, (kind, in_bar, steps) in walk.seen.items() if walk.ok else ():
                groups[key, (kind == Kind.ON, in_bar, bool(self.new_bar[id]), walk.metre)].append((steps, id))
        tones = [
            (self.new_bar[id], in_bar, steps, walk.metre, id, classes)
            for id, walk in enumerate(walks)
            for (in_bar, steps), classes in (walk.tones.items() if walk.ok else ())
        ]
        table = np.array(tones, dtype=np.int64).reshape(-1, 6)
        self.moments, self.tone_moment = np.unique(table[:, :4], axis=0, return_inverse=True)
        """(…, 4) when ids begin notes: in the next bar or not, from the bar line or not, steps, metre as of `Touch`."""
        self.tone_id, self.tone_classes = table[:, 4], table[:, 5].astype(np.int16)
        """Which ids begin notes at which moment, and their pitch classes as bits; drums have none."""
        self.touches: dict[tuple[int, int], list[Touch]] = {}
        """(program, pitch) -> the ids that begin or end such a note; program -1 is that in force."""
        for (key, how), found in groups.items():
            when, ids = zip(*sorted(found), strict=True)
            self.touches.setdefault(key, []).append(Touch(*how, when, np.array(ids)))

    def spell(self, tokens: Sequence[Base]) -> list[int]:
        """Base tokens -> ids, each as long as there is one."""
        ids: list[int] = []
        at = 0
        while at < len(tokens):
            length = next(n for n in range(len(tokens) - at, 0, -1) if tuple(tokens[at : at + n]) in self.spelled)
            ids.append(self.spelled[tuple(tokens[at : at + length])])
            at += length
        return ids

    def shifted(self, steps: int) -> list[Base]:
        """Time shifts that add up to `steps`, longest first."""
        found: list[Base] = []
        while steps > 0:
            longest = max(shift for shift in self.shifts if shift <= steps)
            found.append(Base(Kind.SHIFT, longest))
            steps -= longest
        return found

    def _walk(self, base: tuple[Base, ...]) -> _Walk:
        walk = _Walk(self)
        previous = None
        for index, token in enumerate(base):
            if token.kind in (Kind.OTHER, Kind.MARK) or (
                previous is not None and token.kind not in self.follows.get(previous, ())
            ):
                walk.ok = False
            if not walk.ok:
                return walk
            walk.step(index, token)
            previous = token.kind
        walk.finish(base)
        return walk


class _Walk:
    """One id, followed from an unknown beginning. `ok` is False where no beginning makes it right."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.ok = True
        self.metre = -1
        self.tempo = 0.0
        self.tempos = 0
        self.position_first, self.position_last = NONE, -1
        """Of the bar it begins in; `reach` is the last of all."""
        self.reach = -1
        self.shift_first, self.advance = NONE, 0
        self.now_limit = NONE
        """The latest step in the bar at which the id may begin: its own notes would overlap behind it."""
        self.end_now, self.end_bar = 0, 0
        """The latest end of its notes, in steps from its beginning, or from its bar line."""
        self.lead_duration = 0
        self.inherits = 0
        """0: no note of the program in force; 1: a melodic one; 2: a drum."""
        self.low = NONE
        self.program_first, self.program_low = -1, NONE
        self.high = -1
        self.program_again = self.program_now = False
        """Whether its first program follows notes of the id in the same moment, and the highest of them; whether no
        time passes before it."""
        self.onset_in_bar, self.onset_first = False, NONE
        self.notes = self.peak = self.offs = 0
        self.tail_program, self.tail_pitch = -2, -1
        """The last note of the moment it ends in, where another must follow in it; -2: none."""
        self.tail_now = False
        """Whether one must follow in the moment it begins in, behind notes that only the beginning knows."""
        self.seen: dict[tuple[int, int], tuple[Kind, bool, int]] = {}
        """(program, pitch) -> what the id does first with it (ON or OFF), and when: from the bar line or not, steps."""
        self.tones: dict[tuple[bool, int], int] = defaultdict(int)
        """From the bar line or not, steps -> as bits the pitch classes that begin there; drums have none."""
        # where the walk is
        self._program = -1
        self._in_bar = False  # times are from the bar line, no more from the beginning
        self._time = 0
        self._shift: int | None = None  # the time shift before
        self._moment_is_first = True
        self._high = -1
        self._noted = False  # the program in force has notes or ends in this moment
        self._pitch = -1
        self._program_time = 0  # when the first program came
        self._ends: dict[tuple[int, int], tuple[bool, int]] = {}
        self._sounding: set[tuple[int, int]] = set()
        self._level = 0
        self._onsets: list[tuple[bool, int, int]] = []

    def step(self, index: int, token: Base) -> None:
        v, value = self.vocabulary, int(token.value)
        if token.kind != Kind.SHIFT:
            self._shift = None
        if token.kind == Kind.BAR:
            self.ok = index == 0  # a bar line further on is reached by the tokens it is made of
            self._moment(in_bar=True, time=0)
        elif token.kind == Kind.METRE:
            self.ok = index == 0 or (index == 1 and v.scheme == "remi")
            self.metre = value
            if v.scheme == "remi":
                self._moment(in_bar=True, time=0)
        elif token.kind == Kind.POSITION:
            self.ok = value > self.position_last
            if self.position_first == NONE:
                self.position_first = value
            self.position_last = value
            self._moment(in_bar=True, time=value)
        elif token.kind == Kind.SHIFT:
            if index == 0:
                self.shift_first = value
            elif v.scheme != "structured" and self._shift is not None:
                self.ok = value < self._shift or self._shift == v.shifts[-1]  # as a pause is written
            self.advance += value
            self._shift = value
            if value:
                self._moment(in_bar=False, time=self._time + value)
        elif token.kind == Kind.TEMPO:
            self.tempos += 1
            self.ok = self.tempos == 1
            self.tempo = token.value
        elif token.kind == Kind.PROGRAM:
            self._set_program(value)
        elif token.kind in (Kind.ON, Kind.OFF):
            self._note(token.kind, value, token.drum)
        elif token.kind == Kind.DURATION:
            self._duration(index, value)

    def _moment(self, *, in_bar: bool, time: int) -> None:
        self._in_bar, self._time = in_bar, time
        self._moment_is_first = False
        self._high, self._noted = -1, False

    def _set_program(self, rank: int) -> None:
        if self.program_first < 0:
            self.program_first = rank
            self.program_again = self._noted
            self.program_now = self._moment_is_first
            self.high = self._high
            self._program_time = self._time
        elif self.vocabulary.each_program:
            self.ok = not self._noted or rank >= self._program
        else:
            self.ok = rank > self._program if self._noted else rank != self._program
        if rank != self._program:
            self._high = -1
            self._noted = False
        self._program = rank

    def _note(self, kind: Kind, pitch: int, drum: bool) -> None:
        v = self.vocabulary
        if self._program < 0:
            if self.inherits not in (0, 1 + drum):
                self.ok = False
            self.inherits = 1 + drum
        elif (self._program == DRUMS) != drum:
            self.ok = False
        key = (self._program, pitch)
        if key not in self.seen:
            self.seen[key] = (kind, self._in_bar, self._time)
            self.offs += kind == Kind.OFF
        elif v.scheme == "midilike" and (kind == Kind.ON) == (key in self._sounding):
            self.ok = False
        self._noted = True
        if kind == Kind.OFF:
            self._sounding.discard(key)
            self._level -= 1
            return
        if pitch <= self._high:
            self.ok = False
        if self._program < 0 and self._moment_is_first and self.low == NONE:
            self.low = pitch
        if self._program == self.program_first and self._time == self._program_time:
            self.program_low = min(self.program_low, pitch)
        self._high = self._pitch = pitch
        if not drum:
            self.tones[self._in_bar, self._time] |= 1 << pitch % 12
        self._check_overlap(key)
        if self._program >= 0:  # the program in force may be this one
            self._check_overlap((-1, pitch))
            self.ok &= v.scheme != "midilike" or (-1, pitch) not in self._sounding
        self._sounding.add(key)
        self._count_onset()

    def _count_onset(self) -> None:
        if self.onset_first == NONE:
            self.onset_in_bar, self.onset_first = self._in_bar, self._time
        self.notes += 1
        self._level += 1
        self._onsets.append((self._in_bar, self._time, NONE))
        if self.vocabulary.scheme == "midilike":
            self.peak = max(self.peak, self._level)
        else:  # those that still sound now, as far as the id itself knows
            now = sum(1 for in_bar, _, end in self._onsets if in_bar != self._in_bar or end > self._time)
            self.peak = max(self.peak, now)

    def _check_overlap(self, key: tuple[int, int]) -> None:
        if key not in self._ends:
            return
        in_bar, end = self._ends[key]
        if in_bar == self._in_bar:
            self.ok &= end <= self._time
        else:  # it began at the beginning, this one at a place in the bar
            self.now_limit = min(self.now_limit, self._time - end)
            self.ok &= self._time >= end

    def _duration(self, index: int, steps: int) -> None:
        end = self._time + steps
        if index == 0 or not self._onsets:  # of a note that began before this id
            self.lead_duration = steps
            self.end_now = max(self.end_now, steps)
            return
        if self._in_bar:
            self.end_bar = max(self.end_bar, end)
        else:
            self.end_now = max(self.end_now, end)
        self._ends[(self._program, self._pitch)] = (self._in_bar, end)
        in_bar, time, _ = self._onsets[-1]
        self._onsets[-1] = (in_bar, time, end)

    def finish(self, base: tuple[Base, ...]) -> None:
        v = self.vocabulary
        if not base:
            self.ok = False
            return
        self.reach = self.position_last
        if base[0].kind == Kind.BAR or (base[0].kind == Kind.METRE and v.scheme == "remi"):
            # a bar of its own: known here
            metre = self.metre if self.metre >= 0 else v.default_metre
            self.ok &= self.position_last < int(v.bar_steps[metre])
            self.position_first, self.position_last = NONE, -1
        if base[-1].kind in v.before_note:
            self._count_onset()
            if v.each_program and (self._noted or (self.program_again and self._high < 0)):
                self.tail_program = self._program
                self.tail_pitch = self._high if self._noted else self.high
            self.tail_now = self._moment_is_first and self.tail_program == -2
