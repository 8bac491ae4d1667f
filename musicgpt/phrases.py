"""What a user may give as a prompt -> a score, with remarks on what had to be read differently.

The name of a phrase that comes with the package, the path of a music file, or a tune in ABC as it stands on the
command line, whose headers are supplied where it has none. The phrases are the project's own, one ABC file each.
"""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

from symusic.core import ScoreTick

from musicgpt import midi
from musicgpt.errors import InputError

MAX_ABC = 100_000
"""Characters: a longer tune comes from a file."""


def _shipped() -> dict[str, str]:
    """Name -> ABC, in the order of the names."""
    folder = files("musicgpt") / "assets" / "phrases"
    found = sorted(folder.iterdir(), key=lambda file: file.name)
    return {file.name[:-4]: file.read_text(encoding="utf-8") for file in found if file.name.endswith(".abc")}


def _title(abc: str) -> str:
    return next(line[2:].strip() for line in abc.splitlines() if line.startswith("T:"))


_ABC = _shipped()

PHRASES: dict[str, str] = {name: _title(abc) for name, abc in _ABC.items()}
"""The phrases that come with the package: name -> what it is, in a line."""

EXPECTED = (
    "this model continues a file of music, notes in ABC with a header or a bar line such as 'K:D DEFG ABcd|', "
    f"or one of the phrases {', '.join(PHRASES)}"
)


def read_phrase(text: str) -> tuple[ScoreTick, list[str]]:
    """A phrase's name, a path, or ABC -> a score with at least one note, and remarks.

    Of a file or text with several pieces, the first.

    Raises:
        InputError: none of these, or no music in it.
    """
    if not text.strip():
        raise InputError(f"the prompt is empty; {EXPECTED}")
    if text in _ABC:
        (score,) = midi.read_abc(_ABC[text], f"the phrase {text}")
        return score, []
    if _is_file(text):
        scores, remarks = midi.read_scores(Path(text))
    elif _split(text)[0] or "|" in text:
        if fault := _fault(text):
            raise InputError(f"the prompt is no ABC: {fault}; {EXPECTED}")
        written, remarks = _complete(text)
        scores = midi.read_abc(written, "the ABC given as prompt", remarks)
        scores, remarks = midi.usable(scores, "the ABC given as prompt", remarks)
    else:
        shown = text if len(text) <= 60 else text[:57] + "…"
        raise InputError(f"there is no file {shown!r}; {EXPECTED}")
    if len(scores) > 1:
        remarks = [*remarks, f"the first of {len(scores)} pieces is used"]
    return scores[0], remarks


def _is_file(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for a name, or with a zero byte in it
        return False


FIELD = re.compile(
    r"(?:(X):\s*(\d+)|(M):\s*(\(?[\d+]+\)?/\d+|C\|?|none)|(L):\s*(\d+/\d+)|(Q):\s*((?:\d+/\d+\s*=\s*)?\d+)"
    r"|(K):\s*([A-G][#b]?\s?(?i:maj(?:or)?|min(?:or)?|m|ion(?:ian)?|dor(?:ian)?|phr(?:ygian)?|lyd(?:ian)?"
    r"|mix(?:olydian)?|aeo(?:lian)?|loc(?:rian)?)?|none))(?=\s|$)"
)
"""A header that can stand before others, or before notes, in one line: its value says itself where it ends."""

HEADER = re.compile(r"[A-Za-z]:(?![|:\]])|%")

DECORATED = re.compile(r'"[^"]*"|![^!\s]*!|\[[A-Za-z]:[^\]]*\]|%.*', re.MULTILINE)
"""What may hold any words between notes."""

NOTES = re.compile(r"[A-Ga-gxzyZXTuvHLMOPRSJw0-9/,'^_=|\[\]:(){}<>.~$&*+\\\s-]*")


def _fault(text: str) -> str:
    """What keeps a text from being read as ABC; "" where what is no header is notes."""
    if len(text) > MAX_ABC or "\0" in text:
        return f"expected at most {MAX_ABC:,} characters, all of text: a longer tune comes from a file"
    _, _, body = _split(text)
    notes = DECORATED.sub("", "\n".join(line for line in body if not HEADER.match(line)))
    if foreign := [word for word in notes.split() if not NOTES.fullmatch(word)]:
        return f"{foreign[0][:20]!r} is neither notes nor a header that stands before them"
    return "" if re.search(r"[A-Ga-g]", notes) else "there is no note in it"


def _split(text: str) -> tuple[dict[str, str], list[str], list[str]]:
    """ABC -> the fields X, M, L, Q and K of its head; the other lines before its notes; and the rest."""
    head: dict[str, str] = {}
    before: list[str] = []
    body: list[str] = []
    for line in text.replace("\\n", "\n").splitlines():  # a shell leaves the two characters as they are
        rest = line.strip()
        while "K" not in head and not body and (found := FIELD.match(rest)):
            key, value = (part for part in found.groups() if part is not None)
            head[key] = value
            rest = rest[found.end() :].strip()
        if rest:
            (body if "K" in head or body or not HEADER.match(rest) else before).append(rest)
    return head, before, body


def _complete(text: str) -> tuple[str, list[str]]:
    """ABC as a user typed it -> ABC with every header it needs, and a remark on those that were supplied."""
    head, before, body = _split(text)
    if any(line.startswith("X:") for line in body):  # a book of tunes: as it is, but for the line ends
        return "\n".join(line.strip() for line in text.replace("\\n", "\n").splitlines()) + "\n", []
    supplied = {"M": "4/4", "L": "1/8", "K": "C"}
    if "M" in head:
        del supplied["L"]  # which then follows from the metre, by the standard
    missing = {key: value for key, value in supplied.items() if key not in head}
    fields = {"X": "1"} | missing | head
    lines = [f"X:{fields['X']}", *before, *(f"{key}:{fields[key]}" for key in "MLQK" if key in fields), *body]
    remarks = [f"{' '.join(f'{key}:{value}' for key, value in missing.items())} supplied"] if missing else []
    return "\n".join(lines) + "\n", remarks
