"""MIDI files as they come -> files that symusic reads without losing a note, and what was changed.

Source of the byte format: Standard MIDI Files 1.0, 1988.
"""

from __future__ import annotations

from collections import defaultdict, deque
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise

from musicgpt.errors import InputError


@dataclass
class _Track:
    """What a walk over the events of one MIDI track found."""

    start: int
    """Where its first delta time begins."""
    stop: int = 0
    """Where its last whole event ends; or that of the end-of-track event begins, its delta time before it."""
    ended: bool = False
    """Whether it has an end-of-track event."""
    after: int = 0
    """Where the next chunk can begin."""
    ticks: int = 0
    notes: int = 0
    sounding: defaultdict[tuple[int, int], deque[tuple[int, int]]] = field(default_factory=lambda: defaultdict(deque))
    """(channel, pitch) -> tick and place of each note without end, in order."""
    inserts: dict[int, bytes] = field(default_factory=dict)
    """Place -> bytes that have to stand before it."""


def mended(data: bytes, name: str) -> tuple[list[bytes], int, list[str]]:
    """A MIDI file as it came -> the files of which symusic loses no note, their notes, and what was changed.

    A sound file comes back as it is; format 2 as one file for each of its patterns. A note that never ends is closed
    at the next stroke of its key, or at the end of its track.

    Raises:
        InputError: no MIDI file, one that counts no quarter notes, or bytes that are no events.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"RMID":  # the same file inside a Windows wrapper, its length before it
        begin = max(4, data.find(b"MThd"))
        data = data[begin : begin + int.from_bytes(data[begin - 4 : begin], "little")]
    if data[:4] != b"MThd":
        raise InputError(f"{name} is not a MIDI file: it begins with {data[:4]!r}, expected b'MThd'")
    if len(data) < 14:
        raise InputError(f"{name} is a MIDI file that cannot be read: it ends within its header of 14 bytes")
    length, form, declared, division = (
        int.from_bytes(data[a:b], "big") for a, b in ((4, 8), (8, 10), (10, 12), (12, 14))
    )
    if division >= 0x8000:
        raise InputError(
            f"{name} counts time in SMPTE frames ({256 - (division >> 8)} a second), which have no beat; "
            f"expected ticks per quarter note: export it so"
        )
    if form > 2:
        raise InputError(f"{name} is a MIDI file of format {form}; expected 0, 1 or 2")
    tracks, remarks, behind, left = _walk_chunks(data, 8 + length, name)
    if len(tracks) > 0xFFFF:
        raise InputError(f"{name} has {len(tracks):,} tracks; a MIDI file can declare {0xFFFF:,}")
    notes = sum(track.notes for track in tracks)
    sound = length == 6 and declared == len(tracks) and not remarks and (form < 2 or len(tracks) < 2)
    if len(tracks) > declared:
        remarks.append(f"{len(tracks) - declared} tracks beyond the {declared} declared read too")
    elif len(tracks) < declared:
        remarks.append(f"{declared} tracks declared, {len(tracks)} there")
    if behind:
        remarks.append(f"{behind} notes behind the end of their track left out")
    if left:
        remarks.append(f"{left:,} bytes behind the last track left out")
    unended = sum(len(places) for track in tracks for places in track.sounding.values())
    if unended:
        remarks.append(f"{unended} notes without end closed")
    if sound and not unended and not behind and not any(track.inserts or not track.ended for track in tracks):
        return [data], notes, remarks
    bodies = [_mended_track(data, track, division) for track in tracks]
    groups = [[body] for body in bodies] if form == 2 else [bodies]
    if len(groups) > 1:
        remarks.append(f"{len(groups)} patterns of a file of format 2 read as pieces")
    return [_midi_file(group, division) for group in groups], notes, remarks


def end_ticks(data: bytes, name: str) -> list[int]:
    """Where the last track of each of those files ends: at the end-of-track event, which symusic does not tell.

    Raises:
        InputError: as `mended`.
    """
    walks = (_walk_chunks(file, 14, name)[0] for file in mended(data, name)[0])
    return [max((track.ticks for track in tracks), default=0) for tracks in walks]


def _midi_file(tracks: list[bytes], division: int) -> bytes:
    numbers = (int(len(tracks) != 1), len(tracks), division)
    chunks = (b"MTrk" + len(track).to_bytes(4, "big") + track for track in tracks)
    return b"MThd\0\0\0\6" + b"".join(number.to_bytes(2, "big") for number in numbers) + b"".join(chunks)


def _walk_chunks(data: bytes, place: int, name: str) -> tuple[list[_Track], list[str], int, int]:
    """The tracks; remarks on their lengths; notes behind the ends of tracks; bytes behind the last."""
    tracks: list[_Track] = []
    remarks: list[str] = []
    behind = 0
    while place + 8 <= len(data):
        tag, start = data[place : place + 4], place + 8
        stop = start + int.from_bytes(data[place + 4 : start], "big")
        if tag != b"MTrk":
            if not tag.isalpha() or stop > len(data):
                break
            place = stop  # a chunk of another kind, which a reader has to pass over
            continue
        # where no chunk follows, the length may be wrong, and the end-of-track event is the better witness
        follows = data[stop : stop + 4]
        track = _walk(data, start, len(data) if follows and not follows.isalpha() else min(stop, len(data)), name)
        tracks.append(track)
        if not track.ended and track.stop != stop:
            remarks.append(f"track {len(tracks)} is cut off: read as far as it goes")
        elif track.after > stop or stop > len(data):
            remarks.append(f"track {len(tracks)} is {'longer' if track.after > stop else 'shorter'} than it says")
        elif track.after < min(stop, len(data)):
            with suppress(InputError):  # what stands there need not be events
                behind += _walk(data, track.after, min(stop, len(data)), name).notes
        place = max(stop, track.after) if stop <= len(data) else track.after
    return tracks, remarks, behind, max(0, len(data) - place)


SYSTEM_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1, 0xF6: 0, 0xF8: 0, 0xFA: 0, 0xFB: 0, 0xFC: 0, 0xFE: 0}
"""System messages have no place in a file; of those that are defined, the length is known and they can be passed."""


def _walk(data: bytes, start: int, limit: int, name: str) -> _Track:
    """Follow the events of a track to its end, or to the last whole one before `limit`.

    Raises:
        InputError: bytes that are no events.
    """
    track = _Track(start, after=limit)
    sounding = track.sounding
    place, tick, running, interrupted = start, 0, 0, False
    stop, notes = start, 0
    while place < limit:
        try:
            byte = data[place]
            delta = byte & 127
            while byte > 127:
                place += 1
                byte = data[place]
                delta = delta << 7 | byte & 127
                if delta >= 2**28:  # the longest of four bytes, which is all that the format allows
                    raise InputError(_no_event(name, place, byte))
            event = place = place + 1
            status = data[place]
            if status > 127:
                place += 1
            elif running:
                status = running
                if interrupted:  # symusic loses a running status behind a system event
                    track.inserts[event] = bytes((status,))
            else:
                raise InputError(_no_event(name, place, status))
            if status < 0xF0:
                key = (status & 15, data[place])
                place += 1 if 0xC0 <= status < 0xE0 else 2
                if place > limit:
                    break
                running, interrupted = status, False
                if status < 0xA0:
                    if status >= 0x90 and data[place - 1]:
                        notes += 1
                        sounding[key].append((tick + delta, event))
                    elif places := sounding.get(key):
                        places.popleft()
            elif status in SYSTEM_BYTES:
                place, interrupted = place + SYSTEM_BYTES[status], True
            elif status in (0xF0, 0xF7, 0xFF):
                kind = data[place]
                place += status == 0xFF
                size = 0
                while data[place] > 127:
                    size = size << 7 | data[place] & 127
                    place += 1
                place += 1 + (size << 7 | data[place])
                interrupted = True
                if status == 0xFF and kind == 0x2F and place <= limit:
                    stop, track.ended, track.after, tick = event, True, place, tick + delta
                    break
            else:
                raise InputError(_no_event(name, event, status))
        except IndexError:  # the file ends within an event
            break
        if place > limit:
            break
        stop, tick = place, tick + delta
    track.stop, track.notes, track.ticks = stop, notes, tick
    if tick >= 2**31:  # symusic's ticks would come out negative
        raise InputError(f"{name} is {tick:,} ticks long; expected less than {2**31:,}")
    return track


def _no_event(name: str, place: int, byte: int) -> str:
    return f"{name} is a MIDI file that cannot be read: byte {place:,} ({byte:#04x}) belongs to no event"


def _mended_track(data: bytes, track: _Track, division: int) -> bytes:
    """The events of a track, an end for every note, and an end of the track."""
    inserts, ends = dict(track.inserts), []
    wait = False
    for (channel, pitch), places in track.sounding.items():
        off = bytes((0x80 | channel, pitch, 0))
        for (tick, _), (following, event) in pairwise(places):
            if following > tick:  # else it would have no length
                inserts[event] = off + b"\0" + (bytes((0x90 | channel,)) if data[event] < 128 else b"")
            else:
                ends.append(off + b"\0")
        if places:
            ends.append(off + b"\0")
            wait = wait or places[-1][0] == track.ticks
    parts, before = [], track.start
    for event, insert in sorted(inserts.items()):
        parts += [data[before:event], insert]
        before = event
    parts.append(data[before : track.stop] + (b"" if track.ended else b"\0"))
    if (
        wait
    ):  # a note begins where the track ends: a quarter note for it, behind an empty text that takes the delta time
        parts.append(b"\xff\x01\0" + bytes((division >> 14 | 128, division >> 7 & 127 | 128, division & 127)))
    return b"".join((*parts, *ends, b"\xff\x2f\0"))
