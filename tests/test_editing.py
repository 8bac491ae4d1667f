"""Files whose notes are edited: every other event stays, in its place and at its time."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
from symusic.core import NoteTick, ScoreTick, TrackTick

from musicgpt import midi
from musicgpt.editing import Original
from musicgpt.errors import InputError
from musicgpt.infill import New, centre, emptied, filled, sounding_tracks
from musicgpt.provenance import provenance_text, read_provenance


def small(paths: list[Path]) -> list[Path]:
    """The smaller half of them: mido takes its time."""
    return sorted(paths, key=lambda path: path.stat().st_size)[: len(paths) // 2]


Event = tuple[int, Any]
"""A tick and a message without its time."""


def events_of(data: bytes) -> list[list[Event]]:
    file = mido.MidiFile(file=io.BytesIO(data), clip=True)
    found = []
    for track in file.tracks:
        tick, events = 0, []
        for message in track:
            tick += message.time
            events.append((tick, message.copy(time=0)))
        found.append(events)
    return found


def written(*tracks: list[Event], kind: int = 1) -> bytes:
    """A file of 96 ticks a quarter note."""
    file = mido.MidiFile(type=kind, ticks_per_beat=96)
    for events in tracks:
        track, last = mido.MidiTrack(), 0
        for tick, message in events:
            track.append(message.copy(time=tick - last))
            last = tick
        file.tracks.append(track)
    data = io.BytesIO()
    file.save(file=data)
    return data.getvalue()


def on(pitch: int, channel: int = 0, velocity: int = 64) -> Any:
    return mido.Message("note_on", note=pitch, channel=channel, velocity=velocity)


def off(pitch: int, channel: int = 0) -> Any:
    return mido.Message("note_off", note=pitch, channel=channel, velocity=0)


def program(number: int, channel: int = 0) -> Any:
    return mido.Message("program_change", program=number, channel=channel)


def random_notes(score: ScoreTick, tracks: set[int], beats: float, random: np.random.Generator) -> list[New]:
    """Some for each of these tracks."""
    found = []
    for i in tracks:
        for _ in range(int(random.integers(1, 9))):
            onset = float(random.integers(int(beats * 24))) / 24
            length = float(random.integers(1, 49)) / 24
            pitch, velocity = int(random.integers(30, 90)), int(random.integers(1, 128))
            found.append(New(onset, length, pitch, velocity, midi.rank_of(score.tracks[i])))
    return sorted(found)


def counted(score: ScoreTick) -> Counter[tuple[int, ...]]:
    return Counter((midi.rank_of(t), n.time, n.duration, n.pitch, n.velocity) for t in score.tracks for n in t.notes)


def test_of_real_files_the_notes_of_the_hole_change_and_nothing_else(corpora: list[Path]) -> None:
    edited = 0
    for seed, path in enumerate(small(corpora)):
        score = midi.read_scores(path)[0][0]
        original = Original.read(path, score)
        random = np.random.default_rng(seed)
        lines, there = midi.BarLines(score), sounding_tracks(score)
        first = 1 + int(random.integers(midi.last_bar(score)))
        begin, end = lines.begin(first), lines.begin(first + int(random.integers(1, 9)))
        chosen = set(there if random.random() < 0.5 else there[:1])
        outside, inside = emptied(score, begin, end, chosen)
        beats = (end - begin) / score.ticks_per_quarter
        new = random_notes(score, chosen, beats, random)
        made = filled(outside, begin, end, new, {i: centre(score, i) for i in chosen})
        data = original.with_notes(made, "a text")
        assert counted(midi.read_midi(data, "made")) == counted(made)

        old_events, new_events = events_of(path.read_bytes()), events_of(data)
        assert new_events[0].pop(0) == (0, mido.MetaMessage("text", text="a text"))
        assert len(new_events) == len(old_events)
        removed = added = 0
        for before, after in zip(old_events, new_events, strict=True):
            lost, more = (Counter(map(repr, a)) - Counter(map(repr, b)) for a, b in ((before, after), (after, before)))
            # what stays has kept its order, and at each tick its place among what stays
            kept = [event for event in map(repr, before) if event not in lost]
            assert kept == [event for event in map(repr, after) if event not in lost and event not in more]
            for tick, message in before:
                if repr((tick, message)) in lost:
                    assert message.type in ("note_on", "note_off", "end_of_track")
                    assert message.type != "note_on" or not message.velocity or begin <= tick < end
            for tick, message in after:
                if repr((tick, message)) in more:
                    assert message.type in ("note_on", "note_off", "end_of_track")
                    assert message.type == "end_of_track" or begin <= tick <= end
            removed += lost.total()
            added += more.total()
        assert added <= 2 * len(new) + len(old_events)
        assert removed <= 2 * inside.note_num() + len(old_events)
        edited += 1
    assert edited > 12


def test_a_file_whose_notes_stay_is_the_same_but_for_the_text(corpora: list[Path]) -> None:
    for path in small(corpora)[::4]:
        score = midi.read_scores(path)[0][0]
        again = events_of(Original.read(path, score).with_notes(score, "says"))
        assert again[0].pop(0)[1].text == "says"
        assert again == events_of(path.read_bytes())


FULL = [
    (0, mido.MetaMessage("key_signature", key="Cb")),
    (0, mido.Message("sysex", data=(1, 2, 3))),
    (0, program(40, 3)),
    (0, mido.Message("control_change", control=64, value=127, channel=3)),
    (0, on(60, 3)),
    (90, mido.Message("pitchwheel", pitch=100, channel=3)),
    (96, off(60, 3)),
    (96, on(60, 3)),
    (192, on(60, 3, 0)),
    (192, mido.Message("control_change", control=64, value=0, channel=3)),
    (192, mido.MetaMessage("end_of_track")),
]


def test_new_notes_come_where_they_end_no_other_note() -> None:
    data = written(FULL)
    score = midi.read_midi(data, "full")
    original = Original(data, score)
    outside, _ = emptied(score, 96, 192, {0})
    outside.tracks[0].notes.append(NoteTick(96, 200, 60, 80))
    outside.tracks[0].notes.append(NoteTick(20, 76, 67, 80))
    (events,) = events_of(original.with_notes(outside, "t"))
    assert events == [
        (0, mido.MetaMessage("text", text="t")),
        *FULL[:5],
        (20, on(67, 3, 80)),
        FULL[5],
        (96, off(67, 3)),
        FULL[6],
        (96, on(60, 3, 80)),
        FULL[9],
        (296, off(60, 3)),
        (296, mido.MetaMessage("end_of_track")),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_new_instrument_gets_a_free_channel(kind: int) -> None:
    data = written(FULL, kind=kind)
    score = midi.read_midi(data, "full")
    for number, is_drum in ((73, False), (0, True)):
        track = TrackTick("", number, is_drum)
        track.notes.append(NoteTick(96, 96, 64, 80))
        made = score.copy()
        made.tracks.append(track)
        tracks = events_of(Original(data, score).with_notes(made, "t"))
        assert len(tracks) == 1 + kind
        added = [event for event in tracks[-1] if event not in [*FULL, (0, mido.MetaMessage("text", text="t"))]]
        channel = 9 if is_drum else 0
        expected = [(0, program(73)), (96, on(64, channel, 80)), (192, off(64, channel))][is_drum:]
        assert added == expected


def test_where_no_channel_is_free_there_is_no_new_instrument() -> None:
    channels = [channel for channel in range(16) if channel != 9]
    data = written([(0, on(60, c)) for c in channels] + [(96, off(60, c)) for c in channels])
    score = midi.read_midi(data, "many")
    original = Original(data, score)
    assert original.free_channels == []
    made = score.copy()
    made.tracks.append(TrackTick("", 73, False))
    made.tracks[-1].notes.append(NoteTick(0, 10, 60, 64))
    with pytest.raises(InputError, match="no channel is free"):
        original.with_notes(made, "t")


def test_a_program_that_changes_where_new_notes_would_be_is_refused() -> None:
    data = written([(0, on(60)), (96, off(60)), (100, program(40)), (200, on(60)), (300, off(60))])
    score = midi.read_midi(data, "changing")
    assert [(track.program, len(track.notes)) for track in score.tracks] == [(0, 1), (40, 1)]
    made = score.copy()
    made.tracks[0].notes.append(NoteTick(310, 10, 64, 64))
    with pytest.raises(InputError, match="another program"):
        Original(data, score).with_notes(made, "t")


def test_a_file_with_other_notes_than_the_score_is_not_edited() -> None:
    score = midi.read_midi(written(FULL), "full")
    for other in ([*FULL[:4], *FULL[7:]], [(0, program(41, 3)), *FULL[4:]], []):
        with pytest.raises(InputError, match="more than one way"):
            Original(written(other), score)
    with pytest.raises(InputError, match="mido cannot read it"):
        Original(written(FULL)[:40], score)


def test_what_a_file_said_of_an_earlier_making_goes(tmp_path: Path) -> None:
    first, second = provenance_text({"seed": 1}), provenance_text({"seed": 2})
    data = written([(0, mido.MetaMessage("text", text=first)), (0, mido.MetaMessage("text", text="mine")), *FULL])
    score = midi.read_midi(data, "full")
    (events,) = events_of(Original(data, score).with_notes(score, second))
    assert [message.text for _, message in events if message.type == "text"] == [second, "mine"]
    (tmp_path / "a.mid").write_bytes(Original(data, score).with_notes(score, second))
    assert read_provenance(tmp_path / "a.mid") == {"seed": 2}
