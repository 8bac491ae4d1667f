"""What a MIDI file says of how it was made: JSON in a text meta event, written by `midi.write_midi`, read here by mido.

symusic drops such events. No path and no date is in it, so that the same request gives the same bytes.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mido

from musicgpt.errors import InputError
from musicgpt.files import read_bytes

MAX_TEXT = 1_000_000
"""The longest text, in characters, that mido reads back from a file."""

MAX_TEXT_BYTES = 2**22
"""In a larger file (4 MiB) no text is looked for: mido takes two seconds, and 70 MB, for a megabyte."""

PROVENANCE = "musicgpt: "
"""A text of a MIDI file that begins so says, as JSON in one line, how we made the file."""

PROVENANCE_LEVELS = 8
"""How deep its JSON may be nested: whoever walks what a stranger nested deeper could run out of stack."""


def read_text(path: Path, prefix: str = "") -> list[str]:
    """The text meta events of a MIDI file that begin with an ASCII prefix, track by track.

    [] for what is no MIDI file, for one that mido cannot read and for one above `MAX_TEXT_BYTES`. Bytes beyond ASCII
    are taken for Latin-1. A file that holds the prefix nowhere is not parsed, which is much quicker.
    """
    try:
        data = read_bytes(path, MAX_TEXT_BYTES)
    except InputError:
        return []
    if data[:4] == b"RIFF":
        data = data[max(0, data.find(b"MThd")) :]
    # in a row of such bytes mido would read one number of that many digits, in quadratic time
    if data[:4] != b"MThd" or prefix.encode() not in data or re.search(rb"[\x80-\xff]{1024}", data):
        return []
    try:
        tracks = mido.MidiFile(file=io.BytesIO(data), clip=True).tracks
    except Exception:  # on broken bytes mido raises nearly anything, bare Exceptions of its own included
        return []
    texts = [message.text for track in tracks for message in track if message.type == "text"]
    return [text for text in texts if text.startswith(prefix)]


def read_provenance(path: Path) -> dict[str, Any] | None:
    """How we made a MIDI file, as it says itself; None where it says nothing, or nothing that can be read."""
    for text in read_text(path, PROVENANCE):
        with suppress(ValueError, RecursionError):
            values = json.loads(text.removeprefix(PROVENANCE))
            if isinstance(values, dict) and _within(values, PROVENANCE_LEVELS):
                return values
    return None


def provenance_text(values: Mapping[str, Any]) -> str:
    """What `read_provenance` reads back: the `text` for `write_midi`."""
    text = PROVENANCE + json.dumps(values, separators=(",", ":"))
    assert len(text) <= MAX_TEXT
    return text


def _within(value: Any, levels: int) -> bool:
    """Whether lists and dicts are nested at most that deep."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not inside or (levels > 0 and all(_within(item, levels - 1) for item in inside))
