"""Four voices on a grid of sixteenths <-> ids: soprano, alto, tenor and bass of the first step, then of the second …

An id is what one voice sounds at one step: a pitch, or silence. So the place of an id says which voice it is and where
in the bar, and every piece of so many bars has as many ids. It is the form in which the chorales of J. S. Bach are
compared; what it leaves out are velocities, tempo, metre, and whether a pitch is held or struck again.

Any score can be written so: its first four tracks that hold notes (no drums) are the voices, of notes that sound
together in one the highest is kept, and pitches outside the chorales' range are moved by octaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from symusic.core import NoteTick, NoteTickList, ScoreTick, TempoTick, TimeSignatureTick, TrackTick

from musicgpt import midi, render, similarity
from musicgpt.errors import InputError, TokenizerError
from musicgpt.fidelity import counted
from musicgpt.files import read_json, write_json
from musicgpt.phrases import read_phrase

VOICES = ("Soprano", "Alto", "Tenor", "Bass")
LOWEST, HIGHEST = 36, 81
"""Pitches of the chorales: all of the 382 that are compared lie within."""

STEPS_PER_QUARTER, TICKS_PER_STEP = 4, 120
IDS_PER_BAR = 4 * STEPS_PER_QUARTER * len(VOICES)
"""A bar is four quarter notes long, whatever the metre."""

SILENCE = -1
"""On a grid, where no pitch stands."""

TEMPO_BPM = 80
"""Of what is decoded: as a choir takes a chorale."""

CHOIR, VELOCITY = 52, 80
"""The program (General MIDI) and the velocity of what is decoded."""

MAX_STEPS = 2**20
"""Of a piece: 55 hours of music. A file of a few bytes can say that it lasts longer."""

LAYOUT = {"voices": list(VOICES), "steps_per_quarter": STEPS_PER_QUARTER, "lowest": LOWEST, "highest": HIGHEST}


class GridTokenizer:
    """`Tokenizer` for four voices in turn. Silence is id 0, then come the pitches from LOWEST on, EOS and BOS."""

    name = "grid"
    suffixes: tuple[str, ...] = midi.SUFFIXES
    units: tuple[str, ...] = ("notes", "seconds")
    loss_kinds: tuple[str, ...] = ("notes_lost", "pitches_moved")
    prints = False
    compares = True
    max_document_ids: int | None = 2**18
    default_vocab_size: int | None = None
    has_controls = False
    whole: frozenset[int] = frozenset()
    complete = True

    eos_id = HIGHEST - LOWEST + 2
    bos_id = eos_id + 1
    pad_id: int | None = None
    vocab_size = bos_id + 1
    unscored = frozenset({bos_id})

    @classmethod
    def load(cls, directory: Path) -> GridTokenizer:
        """Raises: TokenizerError: `save` did not write this."""
        path = directory / "tokenizer.json"
        try:
            found = read_json(path)
        except InputError as error:
            raise TokenizerError(str(error)) from error
        if found != LAYOUT:
            raise TokenizerError(f"{path} describes another grid; expected {LAYOUT}")
        return cls()

    def read(self, path: Path) -> tuple[list[ScoreTick], list[str]]:
        return midi.read_scores(path)

    def write(self, document: ScoreTick, path: Path) -> None:
        midi.write_midi(document, path)

    def prompt(self, text: str) -> tuple[ScoreTick, list[str]]:
        return read_phrase(text)

    def encode(self, document: ScoreTick) -> list[int]:
        return self.ids(_grid(document)[0])

    def marked(self, document: ScoreTick, ids: Sequence[int]) -> list[int]:
        return list(ids)

    def altered(self, ids: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return ids, np.zeros_like(ids)

    def ids(self, grid: np.ndarray) -> list[int]:
        """(steps, voices) pitches, SILENCE where there is none -> ids; what is out of range is moved by octaves."""
        found: list[int] = np.where(grid < 0, 0, _within(grid) - LOWEST + 1).flatten().tolist()
        return found

    def grid(self, ids: Sequence[int]) -> np.ndarray:
        """The reverse: (steps, voices) int64; BOS and EOS are passed over, and a last step that is not whole."""
        notes = np.array([id for id in ids if id < self.eos_id], dtype=np.int64)
        whole = notes[: len(notes) // len(VOICES) * len(VOICES)].reshape(-1, len(VOICES))
        return np.where(whole == 0, SILENCE, whole + LOWEST - 1)

    def decode(self, ids: Sequence[int]) -> ScoreTick:
        """A track for each voice; equal pitches in a row are one note."""
        score = ScoreTick(STEPS_PER_QUARTER * TICKS_PER_STEP)
        score.tempos.append(TempoTick(0, TEMPO_BPM))
        score.time_signatures.append(TimeSignatureTick(0, 4, 4))
        for name, pitches in zip(VOICES, self.grid(ids).T, strict=True):
            bounds = [0, *(1 + np.flatnonzero(np.diff(pitches))).tolist(), len(pitches)]
            track = TrackTick(name, CHOIR)
            track.notes = NoteTickList(
                [
                    NoteTick(start * TICKS_PER_STEP, (end - start) * TICKS_PER_STEP, int(pitches[start]), VELOCITY)
                    for start, end in pairwise(bounds)
                    if end > start and pitches[start] != SILENCE
                ]
            )
            score.tracks.append(track)
        return score

    def window(self, ids: Sequence[int] | np.ndarray, first: int) -> tuple[int, list[int]]:
        """At a bar line, with the one id that stands before it: BOS, or the bass of the last step of the bar before.

        So a position always says the same voice and place in the bar.
        """
        start = -(-first // IDS_PER_BAR) * IDS_PER_BAR
        return (start if start < len(ids) else first), []

    def losses(self, document: ScoreTick, ids: Sequence[int]) -> dict[str, int]:
        grid, lost = _grid(document)
        return {"notes_lost": lost, "pitches_moved": int((_within(grid) != grid).sum())}

    def changes(self, document: ScoreTick, ids: Sequence[int]) -> list[str]:
        lost, moved = self.losses(document, ids).values()
        lines = [counted(lost, "note", "lost: there are four voices, each of one note at a time")] if lost else []
        return [*lines, *([counted(moved, "sixteenth", "out of range moved by octaves")] if moved else [])]

    def variants(self, document: ScoreTick, n: int) -> list[ScoreTick]:
        """The piece, then its transpositions by +1, -1, +2, -2 … semitones, those that stay within the range."""
        grid, _ = _grid(document)
        shifts = sorted(self.shifts(grid), key=lambda shift: (abs(shift), -shift))
        copies = (midi.transposed(document, shift) for shift in shifts[1:n])
        return [document, *(copy for copy in copies if copy is not None)]

    def shifts(self, grid: np.ndarray) -> range:
        """By how many semitones a grid can be moved within the range, 0 included."""
        pitches = _within(grid)[grid >= 0]
        return range(LOWEST - pitches.min(), HIGHEST - pitches.max() + 1) if len(pitches) else range(1)

    def fingerprint(self, document: ScoreTick) -> str:
        return midi.fingerprint(document)

    def likeness(self, document: ScoreTick) -> list[str]:
        return similarity.likeness(document)

    def measure(self, document: ScoreTick) -> dict[str, float]:
        return {"notes": float(document.note_num()), "seconds": midi.seconds(document)}

    def learn(self, documents: Iterable[ScoreTick], vocab_size: int | None) -> None:
        raise TokenizerError("the vocabulary grid is complete; nothing can be added to it: leave --vocab-size out")

    def as_html(self, document: ScoreTick, prompt: ScoreTick | None) -> str:
        return render.as_html(document, prompt)

    def save(self, directory: Path) -> None:
        write_json(directory / "tokenizer.json", LAYOUT)
        write_json(
            directory / "tokenizer_config.json",
            {
                "kind": "grid",
                "tokenizer_class": "GridTokenizer",
                "vocab_size": self.vocab_size,
                "note": "load with musicgpt.tokenizer.load_tokenizer; transformers' AutoTokenizer cannot read it",
            },
        )


def _within(grid: np.ndarray) -> np.ndarray:
    """Pitches out of range moved into it by as few octaves as it takes; SILENCE stays."""
    up = -(-np.clip(LOWEST - grid, 0, None) // 12)
    down = -(-np.clip(grid - HIGHEST, 0, None) // 12)
    return np.where(grid < 0, grid, grid + 12 * (up - down))


def _grid(score: ScoreTick) -> tuple[np.ndarray, int]:
    """A score -> (steps, voices) pitches, and how many of its notes are nowhere among them.

    Raises:
        InputError: it lasts longer than MAX_STEPS.
    """
    tracks = [track.notes.numpy() for track in score.tracks if len(track.notes) and not track.is_drum]
    spans = []
    for notes in tracks[: len(VOICES)]:
        starts, ends = (
            np.rint(time * STEPS_PER_QUARTER / score.ticks_per_quarter).astype(np.int64)
            for time in (notes["time"], notes["time"].astype(np.int64) + notes["duration"])
        )
        spans.append(np.stack((starts, np.maximum(starts + 1, ends), notes["pitch"]), axis=1))
    length = max((int(part[:, 1].max()) for part in spans), default=0)
    if length > MAX_STEPS:
        raise InputError(f"the piece is {length:,} sixteenths long; expected at most {MAX_STEPS:,}")
    grid = np.full((length, len(VOICES)), SILENCE, dtype=np.int64)
    for voice, part in enumerate(spans):
        for start, end, pitch in part.tolist():
            np.maximum(grid[start:end, voice], pitch, out=grid[start:end, voice])
    kept = sum(
        bool((grid[start:end, voice] == pitch).any())
        for voice, part in enumerate(spans)
        for start, end, pitch in part.tolist()
    )
    return grid, score.note_num() - kept
