"""A score -> copies that are still the same piece, as the world makes them; for tests and benchmarks of likeness."""

from __future__ import annotations

import random
from collections.abc import Callable

from symusic.core import NoteTick, NoteTickList, ScoreTick, TrackTick, TrackTickList

from musicgpt import midi

RESOLUTIONS = (96, 120, 220, 384, 480, 960, 1024)

Change = Callable[[ScoreTick, random.Random], ScoreTick | None]
"""None where this piece cannot be changed so."""


def transposed(score: ScoreTick, chance: random.Random) -> ScoreTick | None:
    copies = (midi.transposed(score, n) for n in chance.sample([*range(-11, 0), *range(1, 12)], 22))
    return next((copy for copy in copies if copy is not None), None)


def moved(semitones: int) -> Change:
    return lambda score, _: midi.transposed(score, semitones)


def exported(ticks_per_quarter: int) -> Change:
    return lambda score, _: score.resample(ticks_per_quarter, min_dur=1)


def velocities(score: ScoreTick, chance: random.Random) -> ScoreTick:
    copy = score.copy()
    for track in copy.tracks:
        for note in track.notes:
            note.velocity = chance.randrange(1, 128)
    return copy


def tempo(score: ScoreTick, chance: random.Random) -> ScoreTick:
    copy, factor = score.copy(), chance.uniform(0.6, 1.6)
    for event in copy.tempos:
        event.qpm = event.qpm * factor
    return copy


def programs(score: ScoreTick, chance: random.Random) -> ScoreTick:
    copy = score.copy()
    for track in copy.tracks:
        if not track.is_drum:
            track.program = chance.randrange(128)
    return copy


def reordered(score: ScoreTick, chance: random.Random) -> ScoreTick:
    copy = score.copy()
    copy.tracks = TrackTickList(chance.sample(list(copy.tracks), len(copy.tracks)))
    return copy


def merged(score: ScoreTick, _: random.Random) -> ScoreTick:
    """All tracks but the drums in one."""
    copy = score.copy()
    drums = [track for track in copy.tracks if track.is_drum]
    one = TrackTick("all", 0, False)
    one.notes = NoteTickList([note for track in copy.tracks if not track.is_drum for note in track.notes])
    copy.tracks = TrackTickList([one, *drums])
    return copy


def split(score: ScoreTick, _: random.Random) -> ScoreTick:
    """Each track in two, which have its notes in turn."""
    copy = score.copy()
    halves = [track.copy() for track in copy.tracks for _ in range(2)]
    for n, half in enumerate(halves):
        half.notes = NoteTickList(list(half.notes)[n % 2 :: 2])
    copy.tracks = TrackTickList(halves)
    return copy


def silence(score: ScoreTick, chance: random.Random) -> ScoreTick:
    return score.shift_time(chance.randrange(1, 16 * score.ticks_per_quarter))


def bar(score: ScoreTick) -> int:
    """Ticks of the first bar."""
    for first in score.time_signatures:
        return int(4 * score.ticks_per_quarter * first.numerator // first.denominator)
    return int(4 * score.ticks_per_quarter)


def without_first_bar(score: ScoreTick, _: random.Random) -> ScoreTick:
    return midi.from_tick(score, score.start() + bar(score))


def without_last_bar(score: ScoreTick, _: random.Random) -> ScoreTick:
    return score.clip(0, score.end() - bar(score))


def end_repeated(score: ScoreTick, _: random.Random) -> ScoreTick:
    """The last four bars three times, as in a fade-out."""
    copy, length = score.copy(), 4 * bar(score)
    for track in copy.tracks:
        last = [note for note in track.notes if note.time >= score.end() - length]
        for n in (1, 2):
            for note in last:
                track.notes.append(NoteTick(note.time + n * length, note.duration, note.pitch, note.velocity))
    return copy


def all_at_once(score: ScoreTick, chance: random.Random) -> ScoreTick | None:
    changed: ScoreTick | None = score
    for change in (without_first_bar, transposed, velocities, tempo, programs, merged, silence, exported(96)):
        changed = change(changed, chance) if changed is not None and changed.note_num() else None
    return changed


EXACT: dict[str, Change] = {
    "transposed by 1 to 11 semitones": transposed,
    "an octave up": moved(12),
    "an octave down": moved(-12),
    "velocities by chance": velocities,
    "tempo x 0.6 to 1.6": tempo,
    "programs by chance": programs,
    "tracks in another order": reordered,
    "tracks merged": merged,
    "tracks split": split,
    "silence before": silence,
}
"""Of these nothing shows in the keys."""

CHANGES: dict[str, Change] = EXACT | {
    **{f"{n} ticks a quarter note": exported(n) for n in RESOLUTIONS},
    "first bar missing": without_first_bar,
    "last bar missing": without_last_bar,
    "last four bars three times": end_repeated,
    "transposed, 96 ticks, merged, other velocities, tempo, programs, silence, first bar missing": all_at_once,
}
