"""What a user may ask of the music itself: tempo, metre, instruments, scale, range, density. Words in, numbers out.

The grammar makes these part of its mask, so that every note obeys; what cannot be obeyed is refused in one line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from musicgpt.config import option
from musicgpt.errors import UsageError

DRUMS = 128
"""The rank of the drums: behind the programs 0 to 127."""

ANY = "any"
"""Frees what a prompt would otherwise hold: its tempo, its metre, its instruments."""

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "harmonic minor": (0, 2, 3, 5, 7, 8, 11),
    "melodic minor": (0, 2, 3, 5, 7, 9, 11),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "phrygian": (0, 1, 3, 5, 7, 8, 10),
    "lydian": (0, 2, 4, 6, 7, 9, 11),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "locrian": (0, 1, 3, 5, 6, 8, 10),
    "major pentatonic": (0, 2, 4, 7, 9),
    "minor pentatonic": (0, 3, 5, 7, 10),
    "blues": (0, 3, 5, 6, 7, 10),
    "ionian": (0, 2, 4, 5, 7, 9, 11),
    "aeolian": (0, 2, 3, 5, 7, 8, 10),
    "whole tone": (0, 2, 4, 6, 8, 10),
    "chromatic": tuple(range(12)),
}
"""Semitones above the tonic."""

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What the new music must keep to; None: the model's choice.

    Raises:
        UsageError: a value that cannot be read, naming the flag.
    """

    tempo: str | None = option(
        None,
        f"quarter notes a minute, as 96 (that of the prompt, or of the model's choice; {ANY}: it may change)",
        metavar="BPM",
    )
    time_signature: str | None = option(
        None, f"as 6/8 (that of the prompt, or of the model's choice; {ANY}: it may change)", metavar="N/D"
    )
    instruments: str | None = option(
        None,
        f"names or numbers of General MIDI, as piano,cello,drums (those of the prompt; {ANY} lets others in)",
        metavar="NAMES",
    )
    scale: str | None = option(None, "as 'D minor': all notes but drums are of it", metavar="SCALE")
    pitch_range: str | None = option(None, "as C3-C6: all notes but drums are in it (C4 is 60)", metavar="LOW-HIGH")
    max_polyphony: int | None = option(None, "notes that sound at once, at most")
    max_notes_per_beat: int | None = option(None, "notes that begin within a beat of the metre, at most")
    max_bar_repeats: int | None = option(None, "how often the same bar (onsets and pitches) may come in a row")
    track: tuple[str, ...] = option(
        (), "for one track, as 0:pitch-range=C4-C6 (also scale, max-polyphony; repeat it for others)"
    )
    # read from the above
    tempo_bpm: float | None = field(init=False, default=None)
    metre: tuple[int, int] | None = field(init=False, default=None)
    programs: tuple[int, ...] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        for name in ("max_polyphony", "max_notes_per_beat", "max_bar_repeats"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        for name in ("tempo", "time_signature", "instruments", "scale", "pitch_range"):
            value = getattr(self, name)
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value).strip()
                object.__setattr__(self, name, ANY if text.lower() == ANY else text)
        if self.tempo not in (None, ANY):
            object.__setattr__(self, "tempo_bpm", read_tempo(str(self.tempo)))
        if self.time_signature not in (None, ANY):
            object.__setattr__(self, "metre", read_metre(str(self.time_signature)))
        if self.instruments not in (None, ANY):
            object.__setattr__(self, "programs", read_instruments(str(self.instruments)))
        self.pitches(None)  # what cannot be read is said before a model is loaded

    def pitches(self, order: Sequence[int] | None) -> np.ndarray:
        """(129, 128) bool: which pitches each program may play; `order` says which program is which track.

        Scale and range are for pitches; drums have none, and play all of theirs unless left out.
        """
        allowed = np.ones((DRUMS + 1, 128), dtype=bool)
        allowed[:DRUMS] &= _pitches(self.scale, self.pitch_range)
        if self.programs is not None:
            allowed[[rank for rank in range(DRUMS + 1) if rank not in self.programs]] = False
        for text in self.track:
            rank, settings = self._track(text, order)
            if rank is not None:
                allowed[rank] &= _pitches(settings.get("scale"), settings.get("pitch-range"))
        return allowed

    def polyphony(self, order: Sequence[int]) -> dict[int, int]:
        """The most notes at once of single programs."""
        found: dict[int, int] = {}
        for text in self.track:
            rank, settings = self._track(text, order)
            if rank is not None and "max-polyphony" in settings:
                found[rank] = min(int(settings["max-polyphony"]), found.get(rank, 128))
        return found

    def track_programs(self, order: Sequence[int]) -> list[int]:
        """The programs that `track` is about."""
        return [rank for text in self.track if (rank := self._track(text, order)[0]) is not None]

    @property
    def remarks(self) -> list[str]:
        """A line for each instrument that was named in part only."""
        names = [name.strip() for name in str(self.instruments).split(",")] if self.programs is not None else []
        found = [(name, program_name(read_instruments(name)[0])) for name in names if not name.isdecimal()]
        return [f"{name} is {full}" for name, full in found if name.lower() != full.lower()]

    def _track(self, text: str, order: Sequence[int] | None) -> tuple[int | None, dict[str, str]]:
        """ "0:pitch-range=C4-C6" -> the program of track 0, and its settings; several are parted by semicolons."""
        name, colon, rest = text.partition(":")
        settings = dict(part.split("=", 1) for part in rest.split(";") if "=" in part)
        unknown = set(settings) - {"pitch-range", "scale", "max-polyphony"}
        if not colon or "," in name or not settings or unknown or len(settings) != len(rest.split(";")):
            raise UsageError(
                f"--track {text}: expected a track and what holds for it, as 0:pitch-range=C4-C6 "
                f"(also scale, max-polyphony; several parted by ';')"
            )
        _pitches(settings.get("scale"), settings.get("pitch-range"))
        polyphony = settings.get("max-polyphony", "1")
        if not polyphony.isdecimal() or int(polyphony) < 1:
            raise UsageError(f"--track {text}: max-polyphony {polyphony}: expected at least 1")
        if not name.isdecimal():
            return read_instruments(name)[0], settings
        if self.programs is not None:
            order = self.programs
        if order is None:
            return None, settings
        if int(name) >= len(order):
            raise UsageError(
                f"--track {text}: there are {len(order)} tracks, counted from 0: name the instrument, or --instruments"
            )
        return order[int(name)], settings

    def asdict(self) -> dict[str, Any]:
        """What was asked, for the record: `Constraints(**…)` is the same again."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.init}
        return {name: list(value) if name == "track" else value for name, value in values.items() if value}


def read_tempo(text: str) -> float:
    """Quarter notes a minute. Raises: UsageError: no number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"--tempo {text}: expected quarter notes a minute, as 96, or {ANY}")
    return value


def read_metre(text: str) -> tuple[int, int]:
    """ "6/8" -> (6, 8). Raises: UsageError."""
    match = re.fullmatch(r"(\d{1,2})/(\d{1,2})", text.strip())
    if not match or int(match[1]) < 1 or int(match[2]) not in (1, 2, 4, 8, 16, 32):
        raise UsageError(f"--time-signature {text}: expected one such as 4/4 or 6/8, or {ANY}")
    return int(match[1]), int(match[2])


def read_instruments(text: str) -> tuple[int, ...]:
    """ "piano,cello" -> program numbers, drums 128, in the order given. Raises: UsageError: a name that is none."""
    found: list[int] = []
    for name in text.split(","):
        rank = _instrument(name.strip())
        if rank not in found:
            found.append(rank)
    if len([rank for rank in found if rank != DRUMS]) > 15:
        raise UsageError("--instruments: a MIDI file holds at most 15 instruments beside the drums")
    return tuple(found)


def program_name(rank: int) -> str:
    """The General MIDI name of a program; Drums for 128."""
    from pretty_midi.constants import INSTRUMENT_MAP

    return "Drums" if rank == DRUMS else str(INSTRUMENT_MAP[rank])


def _instrument(name: str) -> int:
    from pretty_midi.constants import INSTRUMENT_MAP  # not before it is needed: pretty_midi is slow to come

    if name.isdecimal():
        if int(name) > 127:
            raise UsageError(f"--instruments {name}: programs are numbered 0 to 127; the drums are called drums")
        return int(name)
    key = name.lower()
    if key in ("drums", "drum", "percussion"):
        return DRUMS
    if key == "strings":
        return int(INSTRUMENT_MAP.index("String Ensemble 1"))
    names = [known.lower() for known in INSTRUMENT_MAP]
    tests = (lambda known: known == key, lambda known: key in re.findall(r"\w+", known), lambda known: key in known)
    for test in tests:
        for rank, known in enumerate(names):
            if len(key) > 2 and test(known):
                return rank
    raise UsageError(
        f"--instruments {name!r}: no instrument of General MIDI is called so; a name such as piano, cello, "
        f"alto sax, drums, or a program number from 0 to 127"
    )


def _pitches(scale: str | None, pitch_range: str | None) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(128,) bool."""
    allowed = np.ones(128, dtype=bool)
    if scale is not None:
        tonic, steps = read_scale(scale)
        allowed &= np.isin((np.arange(128) - tonic) % 12, steps)
    if pitch_range is not None:
        low, high = read_range(pitch_range)
        allowed[:low] = False
        allowed[high + 1 :] = False
        if not allowed.any():
            raise UsageError(f"--pitch-range {pitch_range} holds no note of --scale {scale}")
    return allowed


def read_scale(text: str) -> tuple[int, tuple[int, ...]]:
    """ "D minor" -> the pitch class of the tonic, and the steps above it. Raises: UsageError."""
    words = re.sub(r"(?i)\s+flat\b", "b", re.sub(r"(?i)\s+sharp\b", "#", text.strip()))
    match = re.fullmatch(r"([A-Ga-g])([#b♯♭]?)(m?)(?:\s+(.*))?", words)
    kind = " ".join((match[4] or ("minor" if match[3] else "major")).lower().split()) if match else ""
    if not match or kind not in SCALES:
        raise UsageError(f"--scale {text!r}: expected a tonic and one of {', '.join(SCALES)}, as 'D minor'")
    return (STEPS[match[1].upper()] + ACCIDENTALS[match[2]]) % 12, SCALES[kind]


def read_range(text: str) -> tuple[int, int]:
    """ "C3-C6" -> MIDI pitches, both included; C4 is 60. Raises: UsageError."""
    match = re.fullmatch(r"\s*([A-Ga-g][#b♯♭]?-?\d+|\d+)\s*-\s*([A-Ga-g][#b♯♭]?-?\d+|\d+)\s*", text)
    if match:
        low, high = _pitch(match[1]), _pitch(match[2])
        if 0 <= low <= high <= 127:
            return low, high
    raise UsageError(f"--pitch-range {text}: expected two notes from low to high, as C3-C6 or 48-84 (C4 is 60)")


def _pitch(text: str) -> int:
    match = re.fullmatch(r"([A-Ga-g])([#b♯♭]?)(-?\d+)", text)
    if not match:
        return int(text)
    step: int = STEPS[match[1].upper()] + ACCIDENTALS[match[2]]
    return 12 * (int(match[3]) + 1) + step
