"""Token sequences of music, replayed by hand: the judge of whatever makes them.

In come base tokens as strings, without PAD, BOS and EOS; out comes what they say, in quarter notes, or the first place
where they are ill-formed. It shares no code with the package or with miditok, and prefers plain to fast.

`strict` adds the rules that only sampled music keeps: encodings of real files may break them, and then each break is
in `Played.breaches`. Real music whose notes do not overlap and whose metres begin on bar lines keeps them all.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import mido
import pretty_midi
from symusic.core import ScoreTick

DRUMS = -1
MOST_PROGRAMS = 15
"""A MIDI file has 16 channels, one of them for drums."""

POSITIONS = 24
"""In a beat of the metre."""

NOTE = {"Pitch": False, "PitchDrum": True, "NoteOn": False, "DrumOn": True, "NoteOff": False, "DrumOff": True}
"""Tokens that begin or end a note -> is it one of the drums."""

_ALL = {"TimeSig", "Tempo", "Program", "Velocity"}
KINDS = {
    "remi": _ALL | {"Bar", "Position", "Pitch", "PitchDrum", "Duration"},
    "tsd": _ALL | {"TimeShift", "Pitch", "PitchDrum", "Duration"},
    "midilike": _ALL | {"TimeShift", "NoteOn", "NoteOff", "DrumOn", "DrumOff"},
    "structured": {"TimeShift", "Program", "Pitch", "PitchDrum", "Velocity", "Duration"},
}
"""The kinds of token that a scheme has."""

STRAY = {
    "Bar": "a Bar stands at the end of a moment",
    "TimeSig": "a TimeSig stands at most once, first in its moment (remi: right behind its Bar)",
    "Tempo": "a Tempo stands at most once at a moment, before its notes",
    "Position": "a Position stands within a bar, behind its TimeSig",
    "TimeShift": "a TimeShift stands at the end of a moment",
    "Program": "a Program stands before a note, and a note at a moment",
    "Velocity": "a Velocity stands behind the pitch that begins a note",
    "Duration": "a Duration stands behind a Velocity",
} | dict.fromkeys(NOTE, "a note stands at a moment (remi: behind a Position)")
"""What was broken by a token that stands elsewhere."""


class IllFormed(Exception):
    """`position` is an index into the tokens, or their number where the end is at fault."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"token {position}: {reason}")
        self.position = position
        self.reason = reason


class Note(NamedTuple):
    onset: Fraction
    duration: Fraction
    pitch: int
    velocity: int
    program: int


class OpenNote(NamedTuple):
    onset: Fraction
    pitch: int
    velocity: int
    program: int


@dataclass
class Played:
    """Times in quarter notes from the beginning; programs 0 to 127, -1 for drums."""

    notes: list[Note] = field(default_factory=list)
    tempos: list[tuple[Fraction, float]] = field(default_factory=list)
    metres: list[tuple[Fraction, int, int]] = field(default_factory=list)
    bars: list[Fraction] = field(default_factory=list)
    """Bar lines, the last bar's closing one included; none in structured."""
    open: list[OpenNote] = field(default_factory=list)
    breaches: list[IllFormed] = field(default_factory=list)
    """What `strict` would have raised."""


def replay(scheme: str, tokens: Sequence[str], *, strict: bool = True, ended: bool = True) -> Played:
    """What the tokens say; not `ended`: they may stop anywhere, with notes still open or half a note written.

    Raises:
        IllFormed: at the first token that breaks a rule.
    """
    player = _Player(scheme, tokens, strict)
    try:
        {"remi": player.remi, "tsd": player.shifted, "midilike": player.shifted, "structured": player.structured}[
            scheme
        ]()
    except _Ended:
        if ended:
            player.fail("the end comes within a note, or behind a Bar, Position or Program without what follows it")
    player.draw_bars()
    for (program, pitch), begun in sorted(player.open.items()):
        player.played.open += [OpenNote(onset, pitch, velocity, program) for onset, velocity in begun]
    if ended and player.played.open:
        player.fail("notes are still open at the end")
    return player.played


class _Ended(Exception):
    pass


class _Place(NamedTuple):
    program: int
    ended: Fraction | None
    pitch: int


class _Player:
    def __init__(self, scheme: str, tokens: Sequence[str], strict: bool) -> None:
        self.scheme, self.tokens, self.strict = scheme, tokens, strict
        self.at = 0  # of the token to be read
        self.played = Played()
        self.time = Fraction(0)
        self.metre: tuple[int, int] | None = None
        self.metre_since = Fraction(0)
        self.tempo: float | None = None
        self.program: int | None = None
        self.melodic: set[int] = set()
        self.begun = Fraction(0)  # the last moment at which anything begins
        self.before: _Place | None = None  # of the note before, in its moment
        self.ends: dict[tuple[int, int], Fraction] = {}  # (program, pitch) -> its latest end
        self.open: defaultdict[tuple[int, int], deque[tuple[Fraction, int]]] = defaultdict(deque)

    # reading

    def fail(self, reason: str) -> NoReturn:
        raise IllFormed(self.at, reason)

    def need(self, condition: bool, reason: str) -> None:
        if not condition:
            self.fail(reason)

    def need_strictly(self, condition: bool, reason: str) -> None:
        if not condition:
            self.played.breaches.append(IllFormed(self.at, reason))
            if self.strict:
                raise self.played.breaches[-1]

    @property
    def kind(self) -> str:
        """Of the next token; nothing at the end."""
        return self.peek()[0] if self.at < len(self.tokens) else ""

    def peek(self) -> tuple[str, Any]:
        if self.at == len(self.tokens):
            raise _Ended
        try:
            kind, value = _parsed(self.tokens[self.at])
        except ValueError as error:
            self.fail(str(error))
        self.need(kind in KINDS[self.scheme], f"{self.scheme} has no such token")
        return kind, value

    def take(self, *kinds: str, reason: str = "") -> Any:
        kind, value = self.peek()
        self.need(kind in kinds, reason or STRAY[kind])
        self.at += 1
        return value

    # the four schemes

    def remi(self) -> None:
        while self.kind:
            line = self.played.bars[-1] + self.bar if self.played.bars else Fraction(0)
            if not self.at:
                self.need(self.kind == "Bar", "music begins with a Bar")
            self.take("Bar")
            self.played.bars.append(line)
            self.new_moment(line)
            self.need(self.peek()[0] == "TimeSig", "a Bar is followed by its TimeSig")
            self.read_metre()
            last = -1
            while self.kind == "Position":
                position = self.peek()[1]
                self.need(position > last, "Positions rise within a bar")
                self.need(position * self.beat < POSITIONS * self.bar, "a Position lies within its bar")
                self.take("Position")
                last = position
                self.new_moment(line + Fraction(position, POSITIONS) * self.beat)
                self.need(self.peek()[0] in {"Tempo", "Program", *NOTE}, "a Position is followed by a Tempo or a note")
                self.read_tempo()
                self.read_notes()

    def shifted(self) -> None:
        while self.kind:
            if self.kind == "TimeSig":
                self.read_metre()
            self.read_tempo()
            self.read_notes()
            if self.kind:
                self.need(self.kind == "TimeShift", STRAY[self.kind])
            while self.kind == "TimeShift":
                shift = self.peek()[1]
                self.need(shift > 0, "a TimeShift moves")
                self.take("TimeShift")
                self.new_moment(self.time + shift * self.beat)

    def structured(self) -> None:
        cycle = "the cycle is TimeShift Program Pitch Velocity Duration"
        while self.kind:
            shift = self.take("TimeShift", reason=cycle)
            if shift:
                self.new_moment(self.time + shift)
            self.program = self.take("Program", reason=cycle)
            self.need(self.peek()[0] in NOTE, cycle)
            self.read_note(cycle)

    # their parts

    @property
    def beat(self) -> Fraction:
        return Fraction(4, self.metre[1]) if self.metre else Fraction(1)

    @property
    def bar(self) -> Fraction:
        return self.metre[0] * self.beat if self.metre else Fraction(4)

    def new_moment(self, time: Fraction) -> None:
        self.time = time
        self.before = None

    def read_metre(self) -> None:
        metre = self.peek()[1]
        if self.scheme != "remi":
            self.need_strictly(metre != self.metre, "a TimeSig differs from the one before")
            self.need_strictly((self.time - self.metre_since) % self.bar == 0, "a TimeSig stands on a bar line")
        self.take("TimeSig")
        self.metre, self.metre_since, self.begun = metre, self.time, self.time
        if not self.played.metres or self.played.metres[-1][1:] != metre:
            self.played.metres.append((self.time, *metre))

    def read_tempo(self) -> None:
        if self.kind == "Tempo":
            tempo = self.peek()[1]
            self.need_strictly(tempo != self.tempo, "a Tempo differs from the one before")
            self.take("Tempo")
            self.tempo, self.begun = tempo, self.time
            self.played.tempos.append((self.time, tempo))

    def read_notes(self) -> None:
        while self.kind == "Program" or self.kind in NOTE:
            if self.kind == "Program":
                program = self.peek()[1]
                self.need_strictly(program != self.program, "a Program differs from the one before")
                self.program = self.take("Program")
                self.need(self.peek()[0] in NOTE, "a Program is followed by a note")
            self.read_note()

    def read_note(self, reason: str = "") -> None:
        kind, pitch = self.peek()
        self.need(self.program is not None, "a note has a Program before it")
        assert self.program is not None
        self.need(NOTE[kind] == (self.program == DRUMS), "drums have tokens of their own, and only they")
        key = (self.program, pitch)
        ends = kind in ("NoteOff", "DrumOff")
        if ends:
            self.need(bool(self.open[key]), "a NoteOff ends a note of its program that sounds")
            onset, velocity = self.open[key][0]
            self.need(self.time > onset, "a note has a length")
            self.check_order(onset, pitch)
            self.open[key].popleft()
            self.take(kind)
            self.played.notes.append(Note(onset, self.time - onset, pitch, velocity, self.program))
            return
        self.check_order(None, pitch)
        if self.program != DRUMS and self.program not in self.melodic:
            self.melodic.add(self.program)
            self.need_strictly(len(self.melodic) <= MOST_PROGRAMS, f"at most {MOST_PROGRAMS} melodic programs")
        sounds = self.open[key] or self.ends.get(key, Fraction(0)) > self.time
        self.need_strictly(not sounds, "a note does not begin while the same still sounds")
        self.take(kind)
        self.begun = self.time
        velocity = self.take("Velocity", reason=reason or "a note is pitch, Velocity and, but in midilike, Duration")
        if kind in ("NoteOn", "DrumOn"):
            self.open[key].append((self.time, velocity))
            return
        length = self.peek()[1]
        self.take("Duration", reason=reason or "a note is pitch, Velocity and, but in midilike, Duration")
        duration = length * (self.beat if self.scheme != "structured" else 1)
        self.ends[key] = max(self.ends.get(key, Fraction(0)), self.time + duration)
        self.played.notes.append(Note(self.time, duration, pitch, velocity, self.program))

    def check_order(self, ended: Fraction | None, pitch: int) -> None:
        """`ended`: the onset of the note that ends here, nothing where one begins.

        Among NoteOffs there is no order to keep: miditok writes them by the onsets of their notes, which is no fact of
        the sequence itself.
        """
        assert self.program is not None
        last, now = self.before, _Place(128 if self.program == DRUMS else self.program, ended, pitch)
        self.before = now
        if last is None:
            return
        self.need_strictly(now.program >= last.program, "programs rise within a moment, drums last")
        if now.program != last.program:
            return
        if now.ended is None and last.ended is None:
            self.need_strictly(now.pitch != last.pitch, "no note begins twice at a moment")
            self.need_strictly(now.pitch >= last.pitch, "pitches rise within a program and moment")
        elif now.ended is not None:
            self.need_strictly(last.ended is not None, "NoteOffs of a program come before its NoteOns")

    def draw_bars(self) -> None:
        """In remi the last bar's end; else all, to the first behind all that begins and not before the last moment."""
        if self.scheme == "remi" and self.played.bars:
            self.played.bars.append(self.played.bars[-1] + self.bar)
        if self.scheme not in ("tsd", "midilike") or not self.at:
            return
        metres = self.played.metres
        if not metres or metres[0][0] > 0:
            metres = [(Fraction(0), 4, 4), *metres]
        for (start, beats, unit), following in zip(metres, [*metres[1:], None], strict=True):
            line = start
            while line < following[0] if following else line <= self.begun or line < self.time:
                self.played.bars.append(line)
                line += Fraction(4 * beats, unit)
        self.played.bars.append(line)


@cache
def _parsed(token: str) -> tuple[str, Any]:
    """A token -> its kind and value. Raises: ValueError."""
    kind, _, text = token.partition("_")
    if kind not in STRAY:
        raise ValueError(f"no such kind of token: {token!r}")
    pattern = {
        "Bar": r"None",
        "TimeSig": r"([1-9]\d*)/(1|2|4|8|16|32|64)",
        "Tempo": r"\d+\.\d+",
        "Program": r"-1|0|[1-9]\d*",
        "Duration": r"(\d+)\.(\d+)\.([1-9]\d*)",
        "TimeShift": r"(\d+)\.(\d+)\.([1-9]\d*)",
    }.get(kind, r"0|[1-9]\d*")
    found = re.fullmatch(pattern, text, re.ASCII)
    value: Any = None
    if found:
        if kind == "Bar":
            return kind, None
        elif kind == "TimeSig":
            return kind, (int(found[1]), int(found[2]))
        elif kind in ("Duration", "TimeShift"):
            beats, steps, per_beat = (int(part) for part in found.groups())
            nothing = (kind, text) == ("TimeShift", "0.0.1")  # in structured
            if steps < per_beat and (beats or steps or nothing):
                value = beats + Fraction(steps, per_beat)
        elif kind == "Tempo":
            value = float(text) or None
        elif kind == "Position" or {"Program": DRUMS, "Velocity": 1}.get(kind, 0) <= int(text) <= 127:
            value = int(text)
    if value is None:
        raise ValueError(f"a malformed value: {token!r}")
    return kind, value


class FileNote(NamedTuple):
    onset_ticks: int
    end_ticks: int
    pitch: int
    velocity: int
    program: int
    is_drum: bool


def read_back(path: Path) -> dict[str, list[FileNote]]:
    """The notes of a MIDI file as symusic, mido (paired here, first in first out) and pretty_midi read them, sorted."""
    return {name: sorted(read(path)) for name, read in READERS.items()}


def _by_symusic(path: Path) -> list[FileNote]:
    return [
        FileNote(note.time, note.end, note.pitch, note.velocity, track.program, track.is_drum)
        for track in ScoreTick.from_file(path).tracks
        for note in track.notes
    ]


def _by_mido(path: Path) -> list[FileNote]:
    notes = []
    for track in mido.MidiFile(path).tracks:
        ticks = 0
        programs = [0] * 16
        sounding: defaultdict[tuple[int, int], deque[tuple[int, int, int]]] = defaultdict(deque)
        for message in track:
            ticks += message.time
            if message.type == "program_change":
                programs[message.channel] = message.program
            elif message.type == "note_on" and message.velocity:
                key = (message.channel, message.note)
                sounding[key].append((ticks, message.velocity, programs[message.channel]))
            elif message.type in ("note_on", "note_off") and sounding[message.channel, message.note]:
                onset, velocity, program = sounding[message.channel, message.note].popleft()
                notes.append(FileNote(onset, ticks, message.note, velocity, program, message.channel == 9))
        assert not any(sounding.values()), f"{path}: notes without end"
    return notes


def _by_pretty_midi(path: Path) -> list[FileNote]:
    music = pretty_midi.PrettyMIDI(str(path))

    def ticks(seconds: float) -> int:
        return int(music.time_to_tick(seconds))

    return [
        FileNote(ticks(note.start), ticks(note.end), note.pitch, note.velocity, instrument.program, instrument.is_drum)
        for instrument in music.instruments
        for note in instrument.notes
    ]


READERS = {"symusic": _by_symusic, "mido": _by_mido, "pretty_midi": _by_pretty_midi}
