"""Names of scales and chords -> pitch classes (C is 0, B is 11); which beats of a metre are strong.

What is played to a list of chords, one for each bar: on strong beats the tones of the chord, elsewhere those of a scale
and of the chord. The scale is the major one that holds most of the chords' tones, each counted as often as it comes; of
equals, the one nearest on the circle of fifths to the first chord (to its relative major, if that is minor). Only
where a note begins counts: it may ring on into the next bar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from musicgpt.errors import UsageError

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

SPELLINGS: dict[str, tuple[int, ...]] = {
    "maj M": (0, 4, 7),
    "m min -": (0, 3, 7),
    "dim ° o": (0, 3, 6),
    "aug +": (0, 4, 8),
    "5": (0, 7),
    "sus2": (0, 2, 7),
    "sus4 sus": (0, 5, 7),
    "6 maj6 M6": (0, 4, 7, 9),
    "m6 min6 -6": (0, 3, 7, 9),
    "69 6/9": (0, 2, 4, 7, 9),
    "7": (0, 4, 7, 10),
    "maj7 M7 Δ Δ7": (0, 4, 7, 11),
    "m7 min7 -7": (0, 3, 7, 10),
    "mmaj7 mM7 mMaj7 minmaj7 -Δ7": (0, 3, 7, 11),
    "dim7 °7 o7": (0, 3, 6, 9),
    "m7b5 min7b5 -7b5 ø ø7": (0, 3, 6, 10),
    "aug7 +7 7#5": (0, 4, 8, 10),
    "7b5": (0, 4, 6, 10),
    "7sus4 7sus": (0, 5, 7, 10),
    "add9 add2": (0, 2, 4, 7),
    "madd9 madd2": (0, 2, 3, 7),
    "9": (0, 2, 4, 7, 10),
    "maj9 M9 Δ9": (0, 2, 4, 7, 11),
    "m9 min9 -9": (0, 2, 3, 7, 10),
    "7b9": (0, 1, 4, 7, 10),
    "7#9": (0, 3, 4, 7, 10),
    "11": (0, 2, 4, 5, 7, 10),
    "m11 min11 -11": (0, 2, 3, 5, 7, 10),
    "13": (0, 2, 4, 7, 9, 10),
}
CHORDS = {"": (0, 4, 7)} | {name: steps for names, steps in SPELLINGS.items() for name in names.split()}
"""Semitones above the root."""

STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
ACCIDENTALS = {"": 0, "#": 1, "♯": 1, "b": -1, "♭": -1}
TONICS = "C Db D Eb E F F# G Ab A Bb B".split()


@dataclass(frozen=True)
class Chord:
    """One bar of harmony; no `steps`: there is no chord in it (N.C.)."""

    name: str
    root: int = 0
    steps: tuple[int, ...] = ()
    bass: bool = False
    """Whether the name asks for a bass note, as C/G."""

    @property
    def tones(self) -> list[int]:
        return [(self.root + step) % 12 for step in self.steps]

    @property
    def home(self) -> int:
        """The tonic of the major scale that it suggests by itself."""
        return (self.root + 3) % 12 if 3 in self.steps and 4 not in self.steps else self.root


def read_scale(text: str) -> tuple[int, tuple[int, ...]]:
    """ "D minor" -> the pitch class of the tonic, and the steps above it. Raises: UsageError."""
    words = re.sub(r"(?i)\s+flat\b", "b", re.sub(r"(?i)\s+sharp\b", "#", text.strip()))
    match = re.fullmatch(r"([A-Ga-g])([#b♯♭]?)(m?)(?:\s+(.*))?", words)
    kind = " ".join((match[4] or ("minor" if match[3] else "major")).lower().split()) if match else ""
    if not match or kind not in SCALES:
        raise UsageError(f"--scale {text!r}: expected a tonic and one of {', '.join(SCALES)}, as 'D minor'")
    return (STEPS[match[1].upper()] + ACCIDENTALS[match[2]]) % 12, SCALES[kind]


def read_chords(text: str) -> tuple[Chord, ...]:
    """ "Am F C/G N.C." -> a chord for each bar. Raises: UsageError: a name that is none, or none but N.C."""
    chords = tuple(_chord(name) for name in re.split(r"[\s,]+", text.strip()) if name)
    if not any(chord.steps for chord in chords):
        raise UsageError(f"--chords {text!r}: expected a chord for each bar, as 'Am F C G'")
    return chords


def _chord(name: str) -> Chord:
    if name.upper() in ("N.C.", "NC"):
        return Chord(name)
    match = re.fullmatch(r"([A-G])([#b♯♭]?)(.*?)(/[A-G][#b♯♭]?)?", name)
    kind = re.sub("[()]", "", match[3]).replace("♭", "b").replace("♯", "#") if match else ""
    if not match or kind not in CHORDS:
        raise UsageError(
            f"--chords: {name!r} is no chord that is known here: expected a root from A to G, then nothing or one of "
            f"{', '.join(names.split()[0] for names in SPELLINGS)}; or N.C. (no chord), one name for each bar"
        )
    return Chord(name, (STEPS[match[1]] + ACCIDENTALS[match[2]]) % 12, CHORDS[kind], bool(match[4]))


def major_scale(chords: Sequence[Chord]) -> int:
    """The tonic of the major scale that fits chords best; the module says how."""

    def fit(tonic: int) -> tuple[int, int]:
        held = sum((tone - tonic) % 12 in SCALES["major"] for chord in chords for tone in chord.tones)
        fifths = (tonic - home) * 7 % 12
        return held, -min(fifths, 12 - fifths)

    home = next(chord.home for chord in chords if chord.steps)
    return max(range(12), key=fit)


def bar_tones(chords: Sequence[Chord], *, scaled: bool, strict: bool) -> npt.NDArray[np.bool_]:
    """(bars, 2, 12): the pitch classes of each bar, off its strong beats and on them.

    `scaled`: a scale is given, and bars others by itself. `strict`: the chord only, or where there is none the scale.
    """
    scale = set(range(12) if scaled else ((major_scale(chords) + step) % 12 for step in SCALES["major"]))
    found = np.zeros((len(chords), 2, 12), dtype=bool)
    for bar, chord in zip(found, chords, strict=True):
        bar[1, chord.tones or list(scale)] = True
        bar[0, list(scale.union(chord.tones))] = True
        if strict:
            bar[0] = bar[1]
    return found


def strong_beats(beats: int) -> set[int]:
    """Of a bar of so many: the first; the middle of an even one; in 6, 9, 12 … the first of every three."""
    if beats % 3 == 0 and beats > 3:
        return set(range(0, beats, 3))
    return {0, beats // 2} if beats % 2 == 0 else {0}


def strong_steps(beats: int, steps_per_beat: int) -> npt.NDArray[np.bool_]:
    """(beats * steps_per_beat,): whether a note that begins there is on a strong beat, or less than a quarter late."""
    steps = np.arange(beats * steps_per_beat)
    late = steps % steps_per_beat * 4
    return np.isin(steps // steps_per_beat, list(strong_beats(beats))) & (late < steps_per_beat)
