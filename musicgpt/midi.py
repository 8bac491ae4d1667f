"""Music files <-> symusic Scores; the only file that knows ticks, tempo maps and file formats.

What comes out of `read_scores` has at least one note and a usable resolution; everything else is refused in one
line. Formats: MIDI (also inside a RIFF wrapper), ABC through the abc2midi that symusic carries, MusicXML through
verovio where that is installed. Those two run in processes of their own, with so much time and memory and no more,
and a tune that names another file does not get it. No note of a MIDI file is lost without a remark: symusic drops
those that never end, tracks beyond the declared count and what follows a system exclusive by running status, so
`mended` comes before it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mido
import numpy as np
import symusic
from symusic.core import (
    KeySignatureTickList,
    NoteTickList,
    ScoreTick,
    TimeSignatureTick,
    TimeSignatureTickList,
    TrackTickList,
)

from musicgpt.errors import InputError
from musicgpt.files import read_bytes, write_bytes
from musicgpt.marks import DRUMS
from musicgpt.mending import mended

MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
ABC_SUFFIXES = (".abc",)
MUSICXML_SUFFIXES = (".mxl", ".musicxml")
SUFFIXES = (*MIDI_SUFFIXES, *ABC_SUFFIXES, *MUSICXML_SUFFIXES)

ABC_SECONDS = 5
MUSICXML_SECONDS = 30
"""What abc2midi has for a hundred tunes, and verovio for ten files, before they are given up."""

MAX_TUNES = 10_000
"""Of one file: each becomes a file, and a score."""

LIMITED = ("sh", "-c", 'ulimit -v 2000000; exec "$0" "$@"') if os.name == "posix" else ()
"""Before a command: it gets 2 GB of memory at most, where the system has such a limit."""

NAMES_A_FILE = re.compile("abc-include|ptstress")
"""The commands of abc2midi that open a file of the tune's choice, wherever and however they are given."""

TOGETHER = "%%MIDI chordattack 0"
"""Else abc2midi writes each note of a chord 1/48 of a quarter note behind the one before."""

MAX_BYTES = 2**24
"""A larger file of music (16 MiB) is refused unread: it is none, or made to fill memory."""

MAX_QUARTERS = 50_000
"""A longer piece (in quarter notes: seven hours at 120 a minute) is refused: it is one note and a broken pause."""

FINGERPRINT_UNITS = 20_160
"""Time steps a quarter note in a fingerprint: every usual resolution and tuplet divides it or rounds alike."""


def read_scores(path: Path) -> tuple[list[ScoreTick], list[str]]:
    """A file -> its pieces (a tune book holds many), and what had to be read differently from how it is written.

    Raises:
        InputError: no such file, no music in it, or nothing here can read it.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES and os.path.exists(path):  # noqa: PTH110 which raises nothing
        raise InputError(f"{path} is no music file by its name; expected one of {' '.join(SUFFIXES)}")
    data = read_bytes(path, MAX_BYTES)
    if not data:
        raise InputError(f"{path} is empty (0 bytes); expected music in {' '.join(SUFFIXES)}")
    remarks: list[str] = []
    if suffix in ABC_SUFFIXES:
        scores = read_abc(data.decode("utf-8", errors="replace"), str(path), remarks)
    elif suffix in MUSICXML_SUFFIXES:
        scores = [read_musicxml(path)]
    else:
        files, notes, found = mended(data, str(path))
        scores = [read_midi(file, str(path)) for file in files]
        remarks += found
        unread = notes - sum(score.note_num() for score in scores)
        if unread:
            remarks.append(f"{unread} notes lost in reading")
    return usable(scores, str(path), remarks)


def usable(scores: list[ScoreTick], name: str, remarks: list[str]) -> tuple[list[ScoreTick], list[str]]:
    """The scores that can be worked with, their metres mended in place; and the remarks, with what was done behind.

    Raises:
        InputError: none of them can.
    """
    sounding = [score for score in scores if score.note_num() > 0]
    if not sounding:
        raise InputError(f"{name} holds no notes")
    pieces = [score for score in sounding if score.end() <= MAX_QUARTERS * score.ticks_per_quarter]
    if not pieces:
        longest = sounding[0].end() / sounding[0].ticks_per_quarter
        raise InputError(f"{name} is {longest:,.0f} quarter notes long; expected at most {MAX_QUARTERS:,}")
    if len(pieces) < len(scores):
        left = len(scores) - len(pieces)
        remarks.append(f"{left} {'piece' if left == 1 else 'pieces'} without notes, or without end, left out")
    impossible = sum(drop_impossible_metres(score) for score in pieces)
    if impossible:
        remarks.append(f"{impossible} impossible time {'signature' if impossible == 1 else 'signatures'} left out")
    corrected = sum(correct_metre(score) for score in pieces)
    if corrected:
        remarks.append("1/4 throughout read as 4/4" + (f" in {corrected} pieces" if len(pieces) > 1 else ""))
    return pieces, remarks


def read_midi(data: bytes, name: str) -> ScoreTick:
    """The bytes of a MIDI file, sound or `mended` -> Score.

    Raises:
        InputError: symusic cannot parse it, or it has no resolution to count time by.
    """
    if data[:4] != b"MThd":
        raise InputError(f"{name} is not a MIDI file: it begins with {data[:4]!r}, expected b'MThd'")
    try:
        score = ScoreTick.from_midi(data)
    except (RuntimeError, ValueError, TypeError, LookupError, MemoryError) as error:  # the parser's, on bad bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name} is a MIDI file that cannot be read: {reason[:160]}") from error
    if score.ticks_per_quarter <= 0:
        raise InputError(f"{name} has {score.ticks_per_quarter} ticks per quarter note; expected at least 1")
    return score


def read_abc(text: str, name: str, remarks: list[str] | None = None) -> list[ScoreTick]:
    """ABC text, one tune or a book of them -> Scores, in order.

    Tunes that abc2midi cannot convert are left out, with a remark.

    Raises:
        InputError: no tune in the text, or none that can be converted.
    """
    text, foreign = NAMES_A_FILE.subn("-", text)
    if foreign and remarks is not None:
        remarks.append(f"{foreign} commands that name another file left out")
    if text.count("\nX:") >= MAX_TUNES:
        raise InputError(f"{name} holds more than {MAX_TUNES:,} ABC tunes: give them in several files")
    head, *tunes = re.split(r"^X:.*$", text.replace("\r\n", "\n"), flags=re.MULTILINE)
    if not tunes:
        raise InputError(f"{name} holds no ABC tune: expected a header that begins with X:")
    shared = "".join(line + "\n" for line in head.splitlines() if re.match(r"[A-Za-z]:|%%", line))
    if len(shared) * len(tunes) > MAX_BYTES:
        raise InputError(
            f"{name} begins with {len(shared):,} characters that hold for each of its {len(tunes):,} tunes"
        )
    scores: list[ScoreTick] = []
    start, end = 0, time.monotonic() + ABC_SECONDS * (1 + len(tunes) // 100)
    while start < len(tunes):
        with tempfile.TemporaryDirectory(prefix="musicgpt-abc-") as folder:
            finished = _abc2midi(Path(folder), [shared + tune.strip() for tune in tunes[start:]], name, end)
            written = {int(path.stem[4:]): path for path in Path(folder).glob("tune*.mid")}
            for _, path in sorted(written.items()):
                with suppress(InputError):
                    scores.append(read_midi(read_bytes(path, MAX_BYTES), name))
        if finished:
            break
        start += max(written, default=1)  # it died in the tune behind, which is tried as the first, then left out
    if not scores:
        raise InputError(f"{name}: none of its {len(tunes)} ABC tunes can be converted")
    if remarks is not None and len(scores) < len(tunes):
        remarks.append(f"{len(tunes) - len(scores)} of {len(tunes)} tunes cannot be converted")
    return scores


def _abc2midi(folder: Path, tunes: list[str], name: str, end: float) -> bool:
    """Write tune1.mid, tune2.mid … for ABC tunes without numbers; False if the converter died on the way.

    Raises:
        InputError: it is not done by `end`, in the time of `time.monotonic`.
    """
    book = folder / "tune.abc"
    # numbered anew: two tunes of the same number would overwrite each other
    text = "".join(f"X:{i}\n{TOGETHER}\n{tune}\n\n" for i, tune in enumerate(tunes, 1))
    book.write_text(text, encoding="utf-8", errors="replace")  # an argument of a command can be half a character
    binary = next((Path(symusic.__file__).parent / "bin").glob("abc2midi*"))
    quiet = subprocess.DEVNULL  # it prints a line for every doubt
    try:
        done = subprocess.run(
            [*LIMITED, str(binary), book.name],
            cwd=folder,
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            timeout=max(0.0, end - time.monotonic()),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{name}: abc2midi did not finish in time") from error
    return done.returncode in (0, 1)  # a crash is negative on Unix, large on Windows


def read_musicxml(path: Path) -> ScoreTick:
    """MusicXML, plain or compressed -> Score, through verovio.

    Raises:
        InputError: verovio is not installed, or cannot read the file.
    """
    found = convert_musicxml([path])
    if path not in found:
        raise InputError(f"{path} is not MusicXML that verovio can read")
    return found[path]


def convert_musicxml(paths: list[Path]) -> dict[Path, ScoreTick]:
    """MusicXML files -> the Score of each that can be read, through verovio in a process of its own.

    verovio dies or hangs on some broken files; it is then started again behind the one it was at.

    Raises:
        InputError: verovio is not installed.
    """
    if find_spec("verovio") is None:
        raise InputError(
            f"{paths[0]} is MusicXML, which needs verovio: pip install 'musicgpt-midi[corpus]', or export it as MIDI"
        )
    found: dict[Path, ScoreTick] = {}
    start = 0
    with tempfile.TemporaryDirectory(prefix="musicgpt-verovio-") as folder:
        while start < len(paths):
            begun = Path(folder) / "begun"
            begun.write_text("0")
            files = (str(path.resolve()) for path in paths[start:])
            command = [*LIMITED, sys.executable, "-c", VEROVIO, folder, *files]
            with suppress(subprocess.TimeoutExpired):
                quiet = subprocess.DEVNULL
                timeout = MUSICXML_SECONDS * (1 + len(paths[start:]) // 10)
                subprocess.run(command, stdin=quiet, stdout=quiet, stderr=quiet, timeout=timeout, check=False)
            last = int(begun.read_text())
            for i in range(last):
                written = Path(folder) / f"{i}.mid"
                if written.is_file():
                    with suppress(InputError):
                        found[paths[start + i]] = read_midi(written.read_bytes(), str(paths[start + i]))
                    written.unlink()
            start += last if last == len(paths) - start else last + 1
    return found


VEROVIO = """
import base64, sys, verovio
from pathlib import Path
folder = Path(sys.argv[1])
verovio.enableLog(verovio.LOG_OFF)
for i, path in enumerate(sys.argv[2:]):
    (folder / "begun").write_text(str(i))
    toolkit = verovio.toolkit()
    if toolkit.loadFile(path):
        (folder / f"{i}.mid").write_bytes(base64.b64decode(toolkit.renderToMIDI()))
(folder / "begun").write_text(str(len(sys.argv) - 2))
"""
"""What the other process runs; `begun` says which file it is at."""


def write_midi(score: ScoreTick, path: Path, *, end: int | None = None, text: str | None = None) -> None:
    """A Score -> a MIDI file, the same bytes for the same arguments.

    `end`, in ticks of the score, is where every track ends, also behind its last event: a player that repeats the file
    begins again there, and a program that opens it sees whole bars. A track with later events keeps its own end.
    `text`, of ASCII alone (a file does not say how its text is encoded), stands at the beginning of the first track.

    Raises:
        InputError: the file cannot be written.
    """
    plain = end is None and text is None
    write_bytes(path, score.dumps_midi() if plain else _with_end_and_text(score, end, text))


def _with_end_and_text(score: ScoreTick, end: int | None, text: str | None) -> bytes:
    """What symusic writes, with what it does not: through mido, which keeps every event and its channel."""
    keys = [key for key in score.key_signatures if -7 <= key.key <= 7 and key.tonality in (0, 1)]
    if len(keys) < len(score.key_signatures):  # mido refuses a file with a key that has no name
        score = score.copy()
        score.key_signatures = KeySignatureTickList(keys)
    file = mido.MidiFile(file=io.BytesIO(score.dumps_midi()))
    if not file.tracks:
        file.add_track()
    for track in file.tracks if end is not None else []:
        last = sum(message.time for message in track if message.type != "end_of_track")
        if last <= end:
            track[:] = [message for message in track if message.type != "end_of_track"]
            track.append(mido.MetaMessage("end_of_track", time=end - last))
    if text is not None:
        file.tracks[0].insert(0, mido.MetaMessage("text", text=text, time=0))
    written = io.BytesIO()
    file.save(file=written)
    return written.getvalue()


class BarLines:
    """The ticks of a score <-> its bars, counted from 1; of 4/4 until a time signature says otherwise.

    A time signature begins a bar wherever it stands: one within a bar cuts that short.
    """

    def __init__(self, score: ScoreTick) -> None:
        signatures = sorted(score.time_signatures, key=lambda s: s.time)
        possible = [s for s in signatures if s.numerator > 0 and s.denominator > 0]
        metres = {0: (4, 4)} | {max(0, s.time): (s.numerator, s.denominator) for s in possible}
        self._starts, self._metres = list(metres), list(metres.values())
        """Where each metre begins, and what it is."""
        self._whole = 4 * score.ticks_per_quarter
        self._bars = [1]
        """The first bar of each metre."""
        for i, following in enumerate(self._starts[1:]):
            self._bars.append(self._bars[i] + self._count(i, following - 1) + 1)

    def _count(self, i: int, tick: int) -> int:
        """How many bars of the i-th metre are over at a tick."""
        beats, unit = self._metres[i]
        return (tick - self._starts[i]) * unit // (self._whole * beats)

    def bar_at(self, tick: int) -> int:
        i = max(0, bisect_right(self._starts, tick) - 1)
        return self._bars[i] + max(0, self._count(i, tick))

    def begin(self, bar: int) -> int:
        """The first tick of a bar."""
        i = bisect_right(self._bars, bar) - 1
        beats, unit = self._metres[i]
        return self._starts[i] - (self._bars[i] - bar) * self._whole * beats // unit  # rounded up

    def metre(self, bar: int) -> tuple[int, int]:
        """As (numerator, denominator)."""
        return self._metres[bisect_right(self._bars, bar) - 1]

    def beats_until(self, end: int) -> float:
        """Beats of the metres that there are, to a tick."""
        spans = zip(self._starts, [*self._starts[1:], end], self._metres, strict=True)
        return sum((min(end, until) - start) * unit / self._whole for start, until, (_, unit) in spans if start < end)


def rank_of(track: Any) -> int:
    """Its program; of drums DRUMS."""
    return DRUMS if track.is_drum else int(track.program)


def end_of_notes(score: ScoreTick) -> int:
    """The tick at which the last note ends, whatever pedals and controllers come behind; 0 where there is no note."""
    parts = [track.notes.numpy() for track in score.tracks if len(track.notes)]
    return max((int((notes["time"] + notes["duration"]).max()) for notes in parts), default=0)


def last_bar(score: ScoreTick) -> int:
    """The bar in which the last note ends, counted from 1; 0 where there is no note."""
    end = end_of_notes(score)
    return BarLines(score).bar_at(end - 1) if end else 0


def cut(score: ScoreTick, bars: int) -> tuple[ScoreTick, list[str]]:
    """The first bars of a score by its own bar lines -> a score of what begins in them, and what became of the rest.

    Raises:
        InputError: fewer bars than one, or none of them has a note.
    """
    if bars < 1:
        raise InputError(f"the first {bars} bars of the prompt were asked for; expected at least 1")
    parts = [track.notes.numpy() for track in score.tracks if len(track.notes)]
    first = min(int(notes["time"].min()) for notes in parts)
    lines, there = BarLines(score), last_bar(score)
    if bars >= there:
        return score, [f"the prompt has {there} bars; all are used"] if bars > there else []
    last = lines.begin(bars + 1)
    if first >= last:
        raise InputError(f"the first {bars} bars of the prompt hold no notes: ask for at least {lines.bar_at(first)}")
    copy = score.copy()
    shortened = 0
    for track in copy.tracks:
        notes = track.notes.numpy()
        kept = notes["time"] < last
        time, room = notes["time"][kept], last - notes["time"][kept]
        shortened += int((notes["duration"][kept] > room).sum())
        duration = np.minimum(notes["duration"][kept], room)
        track.notes = NoteTickList.from_numpy(time, duration, notes["pitch"][kept], notes["velocity"][kept])
        for pedal in track.pedals:
            pedal.duration = min(pedal.duration, last - pedal.time)
    copy.tracks = TrackTickList([track for track in copy.tracks if len(track.notes)])
    events: list[Any] = [copy.time_signatures, copy.tempos, copy.key_signatures, copy.markers]
    for track in copy.tracks:
        events += [track.controls, track.pitch_bends, track.pedals, track.lyrics]
    for those in events:
        those.filter(lambda event: event.time < last, inplace=True)
    remarks = [f"the first {bars} of {there} bars are used"]
    if shortened:
        remarks.append(f"{shortened} notes that ring over the last bar line shortened to it")
    return copy, remarks


def drop_impossible_metres(score: ScoreTick) -> int:
    """Leave out, in place, the time signatures with no beats or no such note value; how many they were."""
    possible = [s for s in score.time_signatures if s.numerator > 0 and s.denominator in (1, 2, 4, 8, 16, 32, 64)]
    dropped = len(score.time_signatures) - len(possible)
    if dropped:
        score.time_signatures = TimeSignatureTickList(possible)
    return dropped


def correct_metre(score: ScoreTick) -> bool:
    """1/4 throughout, in place -> 4/4: some exporters write a bar line on every beat. True if it was so."""
    signatures = score.time_signatures
    if not signatures or any((s.numerator, s.denominator) != (1, 4) for s in signatures):
        return False
    score.time_signatures = TimeSignatureTickList([TimeSignatureTick(0, 4, 4)])
    return True


def transposed(score: ScoreTick, semitones: int) -> ScoreTick | None:
    """A copy moved by semitones, drums untouched; None where a note would leave 0 to 127 or no note would move."""
    pitches = [track.notes.numpy()["pitch"] for track in score.tracks if not track.is_drum and len(track.notes)]
    if not pitches:
        return None
    low, high = min(int(p.min()) for p in pitches), max(int(p.max()) for p in pitches)  # int8 would overflow
    if low + semitones < 0 or high + semitones > 127:
        return None
    copy = score.copy()
    for track in copy.tracks:
        if not track.is_drum:
            track.shift_pitch(semitones, inplace=True)
    return copy


def from_tick(score: ScoreTick, tick: int) -> ScoreTick:
    """A copy that begins at `tick`, in the tempo, metre and key that hold there; notes begun before it are left out."""
    copy = score.copy()
    for track in copy.tracks:
        notes = track.notes.numpy()
        later = notes["time"] >= tick
        track.notes = NoteTickList.from_numpy(
            notes["time"][later] - tick, notes["duration"][later], notes["pitch"][later], notes["velocity"][later]
        )
    copy.tracks = TrackTickList([track for track in copy.tracks if len(track.notes)])
    for name in ("tempos", "time_signatures", "key_signatures"):
        events = getattr(copy, name)
        before = [event for event in events if event.time <= tick]
        kept = [*before[-1:], *(event for event in events if event.time > tick)]
        for event in kept:
            event.time = max(0, event.time - tick)
        setattr(copy, name, type(events)(kept))
    return copy


def seconds(score: ScoreTick) -> float:
    """How long the piece sounds, to the end of its last note, by its own tempo map; 0.0 where that makes no sense."""
    in_seconds: Any = score.to(symusic.TimeUnit.second)
    notes = [track.notes.numpy() for track in in_seconds.tracks if len(track.notes)]
    end = max((float((part["time"] + part["duration"]).max()) for part in notes), default=0.0)
    return end if np.isfinite(end) and end > 0 else 0.0


def fingerprint(score: ScoreTick) -> str:
    """A hash of what sounds and how it is barred: the same for another resolution, track order or text."""
    per_quarter = FINGERPRINT_UNITS / score.ticks_per_quarter

    def steps(ticks: np.ndarray) -> np.ndarray:
        return np.rint(ticks * per_quarter).astype(np.int64)

    rows = [np.zeros((0, 5), dtype=np.int64)]
    for track in score.tracks:
        notes = track.notes.numpy()
        program = np.full(len(notes["time"]), -1 if track.is_drum else track.program)
        onset, duration = steps(notes["time"]), steps(notes["duration"])
        rows.append(np.stack([onset, duration, notes["pitch"], notes["velocity"], program], axis=1))
    table = np.concatenate(rows)
    table = table[np.lexsort(table.T[::-1])].astype("<i8")
    times = [
        *((t.time * per_quarter, "metre", t.numerator, t.denominator) for t in score.time_signatures),
        *((t.time * per_quarter, "tempo", round(t.mspq), 0) for t in score.tempos),
    ]
    text = repr(sorted((round(time), *rest) for time, *rest in times))
    return hashlib.sha256(table.tobytes() + text.encode()).hexdigest()
