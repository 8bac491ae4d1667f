"""Special tokens that say something of the music and are none: they are never merged, never targets, never sampled.

A tokenizer has those that it was made with; `decode` passes over all of them.
"""

from __future__ import annotations

import re
import unicodedata

DRUMS = 128
"""The rank of the drums: behind the programs 0 to 127."""

TRACKS = tuple(f"Track_{rank}" for rank in range(DRUMS + 1))
"""Which instrument the marks behind it are about: programs 0 to 127, drums 128."""

SUFFIX, PREFIX, MIDDLE = "Fill_Suffix", "Fill_Prefix", "Fill_Middle"

MOST_BARS = 8
"""The longest hole that is filled at once."""

FILL = (SUFFIX, PREFIX, MIDDLE, *(f"FillBars_{bars}" for bars in range(1, MOST_BARS + 1)))
"""What parts an exercise in filling in (see infill.py), and how many bars are to be filled."""

SEGMENT_BARS = 4
"""Controls hold for so many bars at a time, counted from the first."""

MOST_BARS_LEFT = 32
"""More are said as so many."""

PER_INSTRUMENT = ("density", "polyphony", "note_length", "register")
TOGETHER = ("repetition", "key")
"""Of all instruments; and there are the bars that are left."""

LEVELS = ("lowest", "low", "medium", "high", "highest")
"""What a control of five bins is called at each; in numbers 0 to 4."""

KEYS = tuple(f"{tonic} {mode}" for mode in ("major", "minor") for tonic in "C C# D Eb E F F# G Ab A Bb B".split())

CONTROLS = {
    control: tuple(f"{control.title().replace('_', '')}_{level}" for level in levels)
    for control, levels in (
        *((control, range(len(LEVELS))) for control in (*PER_INSTRUMENT, "repetition")),
        ("key", range(len(KEYS))),
        ("bars_left", range(1, MOST_BARS_LEFT + 1)),
    )
}
"""Control -> its marks, from the lowest level up."""

CONTROL_MARKS = (*TRACKS, *(mark for marks in CONTROLS.values() for mark in marks))

STYLE = "Style_"
"""So begin the marks of styles, which stand right behind BOS; there is one for each folder of the corpus."""

MOST_STYLES = 64
LONGEST_STYLE = 64
"""Styles of a tokenizer, and characters of one."""

Levels = dict[tuple[int | None, str], int]
"""What is said of one segment: (program, drums 128, or None for all together; control) -> level, from 0."""


def spelled(levels: Levels) -> list[str]:
    """The marks of one segment: those for all together, then of each instrument its name and what is said of it."""
    marks: list[str] = []
    for rank in (None, *sorted({rank for rank, _ in levels if rank is not None})):
        said = [CONTROLS[control][levels[rank, control]] for control in CONTROLS if (rank, control) in levels]
        marks += [TRACKS[rank], *said] if rank is not None and said else said
    return marks


def style_named(text: str) -> str:
    """ "String Quartets" -> "string-quartets": how the folder of a style, or who asks for it, may call it."""
    return re.sub(r"[\W_]", "-", unicodedata.normalize("NFC", text).lower())[:LONGEST_STYLE]


def in_words(control: str, level: int | None) -> str:
    """As it would be asked for; – where there is nothing to measure."""
    if level is None:
        return "–"
    if control in ("key", "bars_left"):
        return KEYS[level] if control == "key" else str(level + 1)
    return LEVELS[level]
