"""A MIDI file and other notes for some of its own -> the file with those, every other event of it as it was.

What symusic does not keep stays too: channels, pedals, system exclusives, texts, the order of events. Which events are
a note is found as symusic finds it: of each track, channel and pitch the first beginning has the first end, and the
program is that in force at the end. Files in which that gives other notes than symusic are not edited.
"""

from __future__ import annotations

import io
from collections import Counter, defaultdict, deque
from pathlib import Path
from typing import Any, NamedTuple

import mido
from symusic.core import ScoreTick

from musicgpt import midi
from musicgpt.errors import InputError
from musicgpt.files import read_bytes
from musicgpt.marks import DRUMS
from musicgpt.mending import mended
from musicgpt.provenance import PROVENANCE

DRUM_CHANNEL = 9

Note = tuple[int, int, int, int]
"""Onset and duration in ticks, pitch, velocity."""


class Voice(NamedTuple):
    """What symusic makes a track of."""

    track: int
    channel: int
    program: int


class Original:
    """A MIDI file, and of each note of its score the events.

    Raises:
        InputError: mido cannot read it, or it has other notes.
    """

    def __init__(self, data: bytes, score: ScoreTick) -> None:
        try:
            self._file = mido.MidiFile(file=io.BytesIO(data), clip=True)
        except Exception as error:  # on odd bytes mido raises nearly anything, bare Exceptions of its own included
            raise InputError(f"mido cannot read it ({error})") from error
        self._events = [_timed(track) for track in self._file.tracks]
        found = _voices(self._events)
        self._score = score
        self._voices = dict(zip((i for i, track in enumerate(score.tracks) if len(track.notes)), found, strict=False))
        """Place in the score -> which voice it is."""
        self._notes = {voice: found[voice] for voice in self._voices.values()}
        there = [DRUMS if voice.channel == DRUM_CHANNEL else voice.program for voice in found]
        tracks = [track for track in score.tracks if len(track.notes)]
        same = there == [midi.rank_of(track) for track in tracks] and all(
            {note: len(events) for note, events in notes.items()} == _notes(track)
            for notes, track in zip(found.values(), tracks, strict=True)
        )
        if not same:
            raise InputError("its events can be paired to notes in more than one way")

    @classmethod
    def read(cls, path: Path, score: ScoreTick) -> Original:
        """The file that the score was read from. Raises: InputError: as the class; or it holds several pieces."""
        files, _, _ = mended(read_bytes(path, midi.MAX_BYTES), str(path))
        if len(files) > 1:
            raise InputError("it holds several pieces")
        return cls(files[0], score)

    @property
    def free_channels(self) -> list[int]:
        """Those that no event is on, but for that of the drums."""
        used = {event.channel for events in self._events for _, event in events if hasattr(event, "channel")}
        return [channel for channel in range(16) if channel not in used | {DRUM_CHANNEL}]

    def with_notes(self, score: ScoreTick, text: str) -> bytes:
        """The file with the notes of another score, in whose tracks new ones come last; `text` as in `write_midi`.

        A text of that kind that was there goes. What begins at a tick comes behind what was there, what ends before it.

        Raises:
            InputError: there is no channel for a new track, or a program changes where its notes would be.
        """
        gone: list[set[int]] = [set() for _ in self._events]
        added: list[list[tuple[int, int, Any]]] = [[] for _ in self._events]
        free = self.free_channels
        for i, track in enumerate(score.tracks):
            old = _notes(self._score.tracks[i]) if i < len(self._score.tracks) else Counter()
            new = _notes(track)
            if new == old:
                continue
            if i not in self._voices:
                place, channel = self._place_of_new(added, track, free)
            else:
                place, channel, _ = voice = self._voices[i]
                for note, count in (old - new).items():
                    for events in self._notes[voice][note][:count]:
                        gone[place].update(events)
            for (onset, duration, pitch, velocity), count in (new - old).items():
                begin = mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)
                end = mido.Message("note_off", channel=channel, note=pitch, velocity=0)
                added[place] += [(onset, 1, begin), (onset + duration, -1, end)] * count
        tracks = []
        for i, new_events in enumerate(added):
            kept = [event for n, event in enumerate(self._events[i]) if n not in gone[i]] if i < len(gone) else []
            tracks.append(_joined(kept, new_events))
        tracks[0].insert(0, mido.MetaMessage("text", text=text, time=0))
        file = mido.MidiFile(type=self._file.type, ticks_per_beat=self._file.ticks_per_beat, tracks=tracks)
        written = io.BytesIO()
        try:
            file.save(file=written)
        except ValueError as error:
            raise InputError(f"mido cannot write it again ({error})") from error
        if _all_notes(midi.read_midi(written.getvalue(), "what was filled")) != _all_notes(score):
            raise InputError("new notes would be read with another program, or end others")
        return written.getvalue()

    def _place_of_new(self, added: list[list[tuple[int, int, Any]]], track: Any, free: list[int]) -> tuple[int, int]:
        """The number of a track, and a channel, for an instrument that was not there."""
        if not free and not track.is_drum:
            raise InputError("no channel is free for a new instrument")
        channel = DRUM_CHANNEL if track.is_drum else free.pop(0)
        if self._file.type != 0:  # which has one track
            added.append([])
        if not track.is_drum:
            added[-1].append((0, -1, mido.Message("program_change", channel=channel, program=track.program)))
        return len(added) - 1, channel


def _timed(track: Any) -> list[tuple[int, Any]]:
    """The messages of a track, and the tick of each."""
    tick, found = 0, []
    for message in track:
        tick += message.time
        found.append((tick, message))
    return found


def _joined(kept: list[tuple[int, Any]], added: list[tuple[int, int, Any]]) -> Any:
    """A track of the messages that stay, and new ones before (-1) or behind (1) those of their tick."""
    ends = [tick for tick, message in kept if message.type == "end_of_track"]
    ours = [
        (message.type == "text" and message.text.startswith(PROVENANCE)) or message.type == "end_of_track"
        for _, message in kept
    ]
    old = [(tick, 0, message) for (tick, message), drop in zip(kept, ours, strict=True) if not drop]
    events = sorted([*old, *added], key=lambda event: event[:2])
    last = max([*ends, *(tick for tick, *_ in events[-1:])], default=0)
    track, tick = mido.MidiTrack(), 0
    for time, _, message in [*events, (last, 0, mido.MetaMessage("end_of_track"))]:
        track.append(message.copy(time=time - tick))
        tick = time
    return track


def _voices(tracks: list[list[tuple[int, Any]]]) -> dict[Voice, dict[Note, list[tuple[int, int]]]]:
    """By voice, in symusic's order: notes, and of each as often as it is there the places of its two events."""
    found: dict[Voice, dict[Note, list[tuple[int, int]]]] = {}
    for i, events in enumerate(tracks):
        programs = [0] * 16
        sounding: defaultdict[tuple[int, int], deque[tuple[int, int, int]]] = defaultdict(deque)
        for at, (tick, message) in enumerate(events):
            if message.type == "program_change":
                programs[message.channel] = message.program
            elif message.type == "note_on" and message.velocity:
                sounding[message.channel, message.note].append((tick, message.velocity, at))
            elif message.type in ("note_on", "note_off") and (begun := sounding[message.channel, message.note]):
                onset, velocity, beginning = begun.popleft()
                voice = found.setdefault(Voice(i, message.channel, programs[message.channel]), {})
                note = (onset, tick - onset, message.note, velocity)
                voice.setdefault(note, []).append((beginning, at))
    return dict(sorted(found.items()))


def _notes(track: Any) -> Counter[Note]:
    notes = track.notes.numpy()
    return Counter(zip(*(notes[name].tolist() for name in ("time", "duration", "pitch", "velocity")), strict=True))


def _all_notes(score: ScoreTick) -> dict[int, Counter[Note]]:
    """By instrument."""
    found: defaultdict[int, Counter[Note]] = defaultdict(Counter)
    for track in score.tracks:
        if len(track.notes):
            found[midi.rank_of(track)] += _notes(track)
    return found
