"""Scores -> keys that a piece shares with its near-duplicates: transposed, exported anew, a little cut.

What is compared is the top line: the highest of the notes that begin together, drums left out, as intervals from one
to the next. It is the same in every key, at every tempo and velocity, for every program and division into tracks, and
wherever the piece begins. Its runs of RUN intervals make a set; two pieces are alike as far as their sets overlap,
J = common runs / all runs.

As there are too many pairs to compare, each piece says a few keys of its own. The smallest value of a hash function
over a set is the same for two sets with probability J. A key is made of ROWS such values, so two pieces share it with
probability J ** ROWS, and at least one of BANDS keys with 1 - (1 - J ** ROWS) ** BANDS: 97 % for J = 0.7, 47 % for
0.5, 0.6 % for 0.2.

A piece with fewer than FEWEST runs that say something is too short or too plain for that (a scale, one note again and
again, drums). It has one key, of all its notes: only the same ones, transposed or at other velocities, are alike.

What is not found: an arrangement with other notes on top, another performance, drums alone whose timing was rounded.
docs/similarity.txt says how often each kind of copy is found, and what else is.

Sources: the smallest hash, Broder 1997, "On the resemblance and containment of documents"; bands and rows, Leskovec,
Rajaraman and Ullman, "Mining of Massive Datasets", 2nd edition 2014, chapter 3.
"""

from __future__ import annotations

from hashlib import blake2b, shake_128

import numpy as np
from symusic.core import ScoreTick

RUN = 12
"""Intervals in a run. With 8, twice as many pairs of different files overlap by a twentieth or more."""

VARIED = 5
"""Different intervals that a run must have to say something; those of a scale up and down are 4."""

FEWEST = 16
"""Runs that a piece must have to be compared by them."""

BANDS, ROWS = 20, 5

TOGETHER = 0.105
"""Notes begin together that follow each other within so many quarter notes (52 ms at 120 a minute): between 1/12 and
1/8, which are values of written notes, and neither is taken across by rounding to ticks, 96 or more a quarter note."""

STEPS = 24
"""Time steps a quarter note where all notes are compared."""

FACTORS = np.frombuffer(shake_128(b"musicgpt likeness").digest(8 * BANDS * ROWS), dtype="<u8").reshape(BANDS, ROWS) | 1
"""(BANDS, ROWS): odd, so that multiplying by one, modulo 2**64, orders all hashes anew, as another function would."""


def likeness(score: ScoreTick) -> list[str]:
    """Keys, the same on every machine; scores that share one are taken for the same piece. None without notes."""
    line = np.diff(_top_line(score)).astype(np.int8).tobytes()  # an interval is a byte, a run a slice
    runs = {line[i : i + RUN] for i in range(len(line) - RUN + 1)}
    runs = {run for run in runs if len(set(run)) >= VARIED}
    if len(runs) < FEWEST:
        return [_key(b"notes", _notes(score))] if score.note_num() else []
    hashes = np.frombuffer(b"".join(blake2b(run, digest_size=8).digest() for run in runs), dtype="<u8")
    return [_key(b"band %d" % n, (hashes[:, None] * factors).min(axis=0)) for n, factors in enumerate(FACTORS)]


def _top_line(score: ScoreTick) -> np.ndarray:
    """(N,) pitches: of the notes that begin together the highest."""
    parts = [track.notes.numpy() for track in score.tracks if not track.is_drum]
    ticks = np.concatenate([np.zeros(0), *(part["time"] for part in parts)])
    pitch = np.concatenate([np.zeros(0, dtype=np.int16), *(part["pitch"] for part in parts)])
    order = np.argsort(ticks, kind="stable")
    starts = np.flatnonzero(np.diff(ticks[order], prepend=-np.inf) > TOGETHER * score.ticks_per_quarter)
    return np.maximum.reduceat(pitch[order], starts) if len(starts) else pitch


def _notes(score: ScoreTick) -> np.ndarray:
    """(N, 3), sorted: steps behind the first note, pitch above the lowest (of a drum, as it is), whether a drum."""
    parts = [(track.notes.numpy(), track.is_drum) for track in score.tracks]
    ticks = np.concatenate([part["time"] for part, _ in parts])
    pitch = np.concatenate([part["pitch"].astype(np.int64) for part, _ in parts])
    drum = np.concatenate([np.full(len(part["pitch"]), is_drum) for part, is_drum in parts])
    pitch -= np.where(drum, 0, pitch.min(initial=127, where=~drum))
    steps = np.rint((ticks - ticks.min()) * (STEPS / score.ticks_per_quarter)).astype(np.int64)
    return np.unique(np.stack([steps, pitch, drum], axis=1), axis=0)


def _key(kind: bytes, values: np.ndarray) -> str:
    return blake2b(values.astype(values.dtype.newbyteorder("<")).tobytes(), digest_size=8, person=kind).hexdigest()
