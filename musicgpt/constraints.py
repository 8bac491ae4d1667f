"""What a user may ask of the music itself: tempo, instruments, scale, chords, range, density. Words in, numbers out.

The grammar makes these part of its mask, so that every note obeys; what cannot be obeyed is refused in one line.
Controls are the other kind: the model is told of them by marks, four bars at a time, and does what it has learned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from musicgpt.config import flag, option
from musicgpt.errors import UsageError
from musicgpt.harmony import ACCIDENTALS, SCALES, STEPS, TONICS, Chord, bar_tones, major_scale, read_chords, read_scale
from musicgpt.marks import DRUMS, LEVELS, PER_INSTRUMENT, SEGMENT_BARS, TOGETHER, Levels

ANY = "any"
"""Frees what a prompt would otherwise hold: its tempo, its metre, its instruments."""

SURROUNDED = ("tempo", "time_signature", "instruments")
"""Constraints that are not for filling in: there the piece decides, and the tracks that are to be filled."""


LEVEL = f"{', '.join(LEVELS)}, or 0 to {len(LEVELS) - 1}"
"""What a user may say of a control."""


class Asked(NamedTuple):
    """A control and its level, from 0."""

    control: str
    level: int
    track: str | None = None
    """A number, or the name of an instrument; None: each that is spoken of, or all together."""
    bars: tuple[int, int] | None = None
    """The first and the last new bar, counted from 1; None: all."""


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """What the new music must keep to, and what the model is asked for; None: the model's choice.

    Where several controls say something of the same bars and instrument, the one for some bars goes before the one for
    a track, and that before the one for all.

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
    chords: str | None = option(
        None,
        "as 'Am F C G', one for each new bar, again and again (N.C.: none): all notes but drums are tones of the chord "
        "where they begin on a strong beat, or less than a quarter of it late, elsewhere of the chord or the scale "
        "(--scale, or the major scale that fits the chords best). Strong are the first beat and the middle of even "
        "metres; in 6/8, 9/8, 12/8 the first of every three",
        metavar="CHORDS",
    )
    chords_strict: bool = option(False, "with --chords: tones of the chord on all beats")
    pitch_range: str | None = option(None, "as C3-C6: all notes but drums are in it (C4 is 60)", metavar="LOW-HIGH")
    max_polyphony: int | None = option(None, "notes that sound at once, at most")
    max_notes_per_beat: int | None = option(None, "notes that begin within a beat of the metre, at most")
    max_bar_repeats: int | None = option(None, "how often the same bar (onsets and pitches) may come in a row")
    style: str | None = option(None, "ask for music like that of one folder of the training corpus (prepare --styles)")
    density: str | None = option(None, f"ask for notes a bar: {LEVEL}", metavar="LEVEL")
    polyphony: str | None = option(None, "ask for notes at once, as density", metavar="LEVEL")
    note_length: str | None = option(None, "ask for long or short notes, as density", metavar="LEVEL")
    register: str | None = option(None, "ask for high or low notes, as density", metavar="LEVEL")
    repetition: str | None = option(None, "ask for bars that come again, as density", metavar="LEVEL")
    key: str | None = option(None, "ask for a key, as 'D minor'")
    bars_left: bool = option(False, "tell the model every four bars how many of --bars are left")
    track: tuple[str, ...] = option(
        (),
        "for one track, as 0:pitch-range=C4-C6 (also scale, max-polyphony, density, polyphony, note-length, register; "
        "repeat it for others)",
    )
    control: tuple[str, ...] = option(
        (), "for some of the new bars, as bars=5-8:density=low or bars=1-4:track=0;register=high (repeat it for others)"
    )
    # read from the above
    tempo_bpm: float | None = field(init=False, default=None)
    metre: tuple[int, int] | None = field(init=False, default=None)
    programs: tuple[int, ...] | None = field(init=False, default=None)
    progression: tuple[Chord, ...] = field(init=False, default=())
    asked: tuple[Asked, ...] = field(init=False, default=())
    """The controls."""

    def __post_init__(self) -> None:
        for name in ("max_polyphony", "max_notes_per_beat", "max_bar_repeats"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"--{name.replace('_', '-')} {value}: expected at least 1")
        for name in ("track", "control"):
            object.__setattr__(self, name, tuple(getattr(self, name) or ()))
        for name in (
            "tempo",
            "time_signature",
            "instruments",
            "scale",
            "chords",
            "pitch_range",
            "style",
            *PER_INSTRUMENT,
            *TOGETHER,
        ):
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
        if self.chords is not None:
            object.__setattr__(self, "progression", read_chords(self.chords))
        elif self.chords_strict:
            raise UsageError("--chords-strict: expected --chords, too")
        object.__setattr__(self, "asked", tuple(_asked(self)))
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

    @property
    def harmony(self) -> np.ndarray:
        """(bars, 2, 12) bool: the pitch classes of each new bar in turn, off strong beats and on them."""
        if not self.progression:
            return np.ones((1, 2, 12), dtype=bool)
        return bar_tones(self.progression, scaled=self.scale is not None, strict=self.chords_strict)

    def polyphonies(self, order: Sequence[int]) -> dict[int, int]:
        """The most notes at once of single programs."""
        found: dict[int, int] = {}
        for text in self.track:
            rank, settings = self._track(text, order)
            if rank is not None and "max-polyphony" in settings:
                found[rank] = min(int(settings["max-polyphony"]), found.get(rank, 128))
        return found

    def track_programs(self, order: Sequence[int]) -> list[int]:
        """The programs that `track` is about, and those that controls name."""
        named = [text.partition(":")[0] for text in self.track]
        named += [asked.track for asked in self.asked if asked.track is not None]
        return [rank for name in dict.fromkeys(named) if (rank := self._rank(name, order)) is not None]

    @property
    def controls(self) -> dict[str, str]:
        """Each control that is asked for, and the flag that does so."""
        found = {}
        for asked in self.asked:
            where = "control" if asked.bars else "track" if asked.track else asked.control
            found[asked.control] = flag(where)
        return found | ({"bars_left": "--bars-left"} if self.bars_left else {})

    @property
    def last_bar(self) -> int:
        """The last new bar that a control is about, from 1; 0: none is named."""
        return max((asked.bars[1] for asked in self.asked if asked.bars), default=0)

    def widened(self, bars: int | None) -> list[str]:
        """A line for each control that holds for more of the new bars than it names, as segments are told of whole."""
        found = []
        for first, last in dict.fromkeys(asked.bars for asked in self.asked if asked.bars):
            wide = (first - 1) // SEGMENT_BARS * SEGMENT_BARS + 1, -(-last // SEGMENT_BARS) * SEGMENT_BARS
            wide = wide[0], min(wide[1], bars or wide[1])
            if wide != (first, last):
                found.append(
                    f"--control bars={first}-{last} is asked of bars {wide[0]} to {wide[1]}: of four at a time"
                )
        return found

    def levels(self, first: int, last: int, order: Sequence[int]) -> Levels:
        """What is asked of the new bars from `first` to `last`; `order` as for `pitches`.

        Raises:
            UsageError: a control of instruments, and it is not known which there will be.
        """
        levels: Levels = {}
        for control, level, track, bars in sorted(self.asked, key=lambda a: (a.bars is not None, a.track is not None)):
            if bars is not None and not (bars[0] <= last and first <= bars[1]):
                continue
            if control in TOGETHER:
                levels[None, control] = level
                continue
            ranks: Sequence[int | None] = self.programs or order or self.track_programs(order)
            if track is not None:
                ranks = [self._rank(track, order)]
            if not ranks:
                told = f"{control.replace('_', '-')}={LEVELS[level]}"
                how = f"--control bars={bars[0]}-{bars[1]}:track=piano;{told}" if bars else f"--track piano:{told}"
                raise UsageError(
                    f"{flag(control)} is of instruments, and none are known here: add --instruments, or name one, as "
                    f"{how}"
                )
            if control == "register" and not {*ranks} - {DRUMS}:
                raise UsageError("--register: drums have none; leave it out, or name another instrument")
            levels |= {(rank, control): level for rank in ranks if (rank, control) != (DRUMS, "register")}
        return levels

    @property
    def remarks(self) -> list[str]:
        """A line for each instrument that was named in part only, and for what chords leave open."""
        names = [name.strip() for name in str(self.instruments).split(",")] if self.programs is not None else []
        found = [(name, program_name(read_instruments(name)[0])) for name in names if not name.isdecimal()]
        remarks = [f"{name} is {full}" for name, full in found if name.lower() != full.lower()]
        chords = list(dict.fromkeys(self.progression))
        remarks += [f"{chord.name}: its bass is not asked for" for chord in chords if chord.bass]
        if self.scale is not None:
            tonic, steps = read_scale(self.scale)
            beyond = [chord.name for chord in chords if not {(tone - tonic) % 12 for tone in chord.tones} <= {*steps}]
            remarks += [f"{name}: its tones that are not of {self.scale} are left out" for name in beyond]
        elif chords:
            remarks.append(f"the scale of these chords is {TONICS[major_scale(self.progression)]} major")
        return remarks

    def _track(self, text: str, order: Sequence[int] | None) -> tuple[int | None, dict[str, str]]:
        """ "0:pitch-range=C4-C6" -> the program of track 0, and its settings; several are parted by semicolons."""
        name, _, rest = text.partition(":")
        settings = _settings(rest)
        known = {"pitch-range", "scale", "max-polyphony", *(control.replace("_", "-") for control in PER_INSTRUMENT)}
        if "," in name or not settings or not settings.keys() <= known:
            raise UsageError(
                f"--track {text}: expected a track and what holds for it, as 0:pitch-range=C4-C6 "
                f"(also {', '.join(sorted(known))}; several parted by ';')"
            )
        _pitches(settings.get("scale"), settings.get("pitch-range"))
        polyphony = settings.get("max-polyphony", "1")
        if not polyphony.isdecimal() or int(polyphony) < 1:
            raise UsageError(f"--track {text}: max-polyphony {polyphony}: expected at least 1")
        return self._rank(name, order), settings

    def _rank(self, name: str, order: Sequence[int] | None) -> int | None:
        """The program of a track, by its number or the name of its instrument; None: it is not yet known."""
        if not name.isdecimal():
            return read_instruments(name)[0]
        if self.programs is not None:
            order = self.programs
        if order is None:
            return None
        if int(name) >= len(order):
            raise UsageError(
                f"--track {name}: there are {len(order)} tracks, counted from 0: name the instrument, or --instruments"
            )
        return order[int(name)]

    def asdict(self) -> dict[str, Any]:
        """What was asked, for the record: `Constraints(**…)` is the same again."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.init}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value}


def _asked(constraints: Constraints) -> Iterator[Asked]:
    for control in (*PER_INSTRUMENT, *TOGETHER):
        value = getattr(constraints, control)
        if value is not None:
            yield Asked(control, read_level(control, str(value), flag(control)))
    for text in constraints.track:
        name, _, rest = text.partition(":")
        for control, value in _settings(rest).items():
            if (control := control.replace("-", "_")) in PER_INSTRUMENT:
                yield Asked(control, read_level(control, value, f"--track {text}:"), name)
    for text in constraints.control:
        where, _, rest = text.partition(":")
        settings = _settings(rest)
        bars, track = re.fullmatch(r"bars=(\d{1,9})(?:-(\d{1,9}))?", where), settings.pop("track", None)
        known = PER_INSTRUMENT if track is not None else (*PER_INSTRUMENT, *TOGETHER)
        controls = {name.replace("-", "_"): value for name, value in settings.items()}
        first, last = (int(bars[1]), int(bars[2] or bars[1])) if bars else (0, 0)
        if not 1 <= first <= last or not controls or not controls.keys() <= {*known}:
            raise UsageError(
                f"--control {text}: expected new bars, counted from 1, and what is asked of them, as "
                f"bars=5-8:density=low (also {', '.join(known[1:]).replace('_', '-')}; track=0; parted by ';')"
            )
        for control, value in controls.items():
            level = read_level(control, value, f"--control {text}:")
            yield Asked(control, level, track, (first, last))


def _settings(text: str) -> dict[str, str]:
    """ "a=1;b=2" -> {"a": "1", "b": "2"}; of anything else nothing."""
    parts = [part.partition("=") for part in text.split(";")]
    return {name: value for name, _, value in parts} if all(equals for _, equals, _ in parts) else {}


def read_level(control: str, text: str, where: str) -> int:
    """ "low" -> 1, "3" -> 3; of a key, "D minor" -> its index in `KEYS`. Raises: UsageError."""
    if control == "key":
        with suppress(UsageError):
            tonic, steps = read_scale(text)
            if steps in (SCALES["major"], SCALES["minor"]):
                return tonic + 12 * (steps == SCALES["minor"])
        raise UsageError(f"{where} {text!r}: expected a tonic and major or minor, as 'D minor'")
    word = text.strip().lower()
    if word not in (*LEVELS, *map(str, range(len(LEVELS)))):
        raise UsageError(f"{where} {text!r}: expected {LEVEL}")
    return LEVELS.index(word) if word in LEVELS else int(word)


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


def read_bars(text: str) -> tuple[int, int]:
    """ "5-8" or "5" -> the first and the last bar. Raises: UsageError."""
    match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UsageError(f"--bars {text}: expected bars counted from 1, as 5-8")
    return first, last


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
