"""What musicgpt.originality finds: of what was copied on purpose, and in held-out pieces that nobody copied.

    python benchmarks/originality.py CORPUS... [-n 12] [--held-out 60] [--show 3] [--json FILE]

A corpus is a folder of MIDI files, or `folk` or `chorales`. The index is of the training pieces of all of them. First,
passages of training pieces are planted into held-out pieces of the same corpus, 32 bars long, in place of what was
there, changed in one way or in several; each is found if matches cover half of its bars. Then the beginnings of
held-out pieces as they are: how many share a passage, and how many notes lie in one; once more for those of which no
version is among the training pieces, by `musicgpt.similarity`. Last, what was found there, to judge by title.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from symusic.core import NoteTick, NoteTickList, ScoreTick

from musicgpt import midi
from musicgpt.corpus import file_name, find_files, resolve_corpus, split_of
from musicgpt.originality import NORMAL_BARS, Index, Originality
from musicgpt.similarity import likeness

HOST_BARS = 32
LENGTHS = (4, 8, 16)

Pieces = dict[str, ScoreTick]


def each_note(score: ScoreTick, change: Callable[[NoteTick], tuple[int, int, int]]) -> ScoreTick:
    """`change` gives time, duration and pitch."""
    copy = score.copy()
    for track in copy.tracks:
        notes = []
        for note in track.notes:
            time, duration, pitch = change(note)
            notes.append(NoteTick(time, max(1, duration), min(127, max(0, pitch)), note.velocity))
        track.notes = NoteTickList(notes)
    return copy


def later(score: ScoreTick, ticks: int) -> ScoreTick:
    return each_note(score, lambda note: (note.time + ticks, note.duration, note.pitch))


def only(score: ScoreTick, begin: int, end: int, *, inside: bool = True) -> ScoreTick:
    """A copy with the notes that begin there, or with all the others."""
    copy = score.copy()
    for track in copy.tracks:
        track.notes = NoteTickList([note for note in track.notes if (begin <= note.time < end) is inside])
    return copy


def as_it_is(score: ScoreTick, chance: random.Random) -> ScoreTick:
    return score


def transposed(score: ScoreTick, chance: random.Random) -> ScoreTick:
    """By up to a tritone; a passage whose range leaves no room for that stays where it is."""
    copies = (midi.transposed(score, n) for n in chance.sample([*range(-6, 0), *range(1, 7)], 12))
    return next((copy for copy in copies if copy is not None), score)


def slower(score: ScoreTick, chance: random.Random) -> ScoreTick:
    return each_note(score, lambda note: (2 * note.time, 2 * note.duration, note.pitch))


def faster(score: ScoreTick, chance: random.Random) -> ScoreTick:
    return each_note(score, lambda note: (note.time // 2, note.duration // 2, note.pitch))


def other_rhythm(score: ScoreTick, chance: random.Random) -> ScoreTick:
    """Two in five moments come later, by up to half of the time to the next."""
    times = sorted({note.time for track in score.tracks for note in track.notes})
    late = {now: (after - now) // 2 if chance.random() < 0.4 else 0 for now, after in pairwise(times)}
    return each_note(
        score, lambda note: (note.time + late.get(note.time, 0), note.duration - late.get(note.time, 0), note.pitch)
    )


def altered(score: ScoreTick, chance: random.Random) -> ScoreTick:
    """One note in eight, by up to four semitones."""

    def change(note: NoteTick) -> tuple[int, int, int]:
        by = chance.choice((-4, -3, -2, -1, 1, 2, 3, 4)) if chance.random() < 1 / 8 else 0
        return note.time, note.duration, note.pitch + by

    return each_note(score, change)


def other_programs(score: ScoreTick, chance: random.Random) -> ScoreTick:
    copy = score.copy()
    for track in copy.tracks:
        track.program = track.program if track.is_drum else chance.randrange(128)
    return copy


CHANGES: dict[str, Callable[[ScoreTick, random.Random], ScoreTick]] = {
    "as it is": as_it_is,
    "transposed": transposed,
    "twice as slow": slower,
    "twice as fast": faster,
    "rhythm altered": other_rhythm,
    "one note in eight altered": altered,
    "other programs": other_programs,
    "transposed, one in eight altered": lambda score, chance: altered(transposed(score, chance), chance),
}


def plant(source: ScoreTick, host: ScoreTick, bars: int, change: str, chance: random.Random) -> tuple[ScoreTick, range]:
    """The host with so many bars of the source, changed, in place of its own; and its bars that they fill."""
    theirs, ours = midi.BarLines(source), midi.BarLines(host)
    first = chance.randrange(1, midi.last_bar(source) - bars + 2)
    begin, end = theirs.begin(first), theirs.begin(first + bars)
    passage = CHANGES[change](later(only(source, begin, end), -begin), chance).resample(
        host.ticks_per_quarter, min_dur=1
    )
    at = ours.begin(chance.randrange(1, midi.last_bar(host) // 2 + 2))
    until = at + midi.end_of_notes(passage)
    planted = only(host, at, until, inside=False)
    for track in later(passage, at).tracks:
        planted.tracks.append(track)
    return planted, range(ours.bar_at(at), ours.bar_at(until - 1) + 1)


def sounds(score: ScoreTick, bars: int) -> bool:
    """Whether it has so many bars, and on average two notes in each that are no drum's."""
    notes = sum(len(track.notes) for track in score.tracks if not track.is_drum)
    last = midi.last_bar(score)
    return last >= bars and notes >= 2 * last


def copies(index: Index, train: Pieces, held_out: Pieces, n: int) -> dict[str, dict[int, float]]:
    """Change -> bars -> share of the planted passages that are found."""
    chance = random.Random(1)
    sources, hosts = (
        [score for _, score in sorted(pieces.items()) if sounds(score, max(LENGTHS))] for pieces in (train, held_out)
    )
    shares: dict[str, dict[int, float]] = {change: {} for change in CHANGES}
    for change in CHANGES:
        for bars in LENGTHS:
            found = []
            for _ in range(n):
                host, _remarks = midi.cut(chance.choice(hosts), HOST_BARS)
                planted, where = plant(chance.choice(sources), host, bars, change, chance)
                matches = index.compare(midi.read_midi(planted.dumps_midi(), "planted")).matches
                covered = {bar for match in matches for bar in range(match.bars[0], match.bars[1] + 1)}
                found.append(2 * len(covered & set(where)) >= len(where))
            shares[change][bars] = statistics.mean(found)
    return shares


def alarms(found: dict[str, Originality]) -> dict[str, Any]:
    """What was found in pieces that nobody copied."""
    longest = [one.longest_bars for one in found.values()]
    shares = sorted(one.share_copied or 0.0 for one in found.values())
    return {
        "pieces": len(found),
        "with a passage": sum(bars > 0 for bars in longest),
        "with one in 5 bars": sum(bars >= 5 for bars in longest),
        "with one in 9 bars": sum(bars >= 9 for bars in longest),
        "share of notes": statistics.mean(shares) if shares else 0.0,
        "of the highest tenth": shares[int(0.9 * len(shares))] if shares else 0.0,
    }


def table(rows: list[list[str]]) -> None:
    print("\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]), "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", nargs="+")
    parser.add_argument("-n", type=int, default=12, help="passages of each corpus, length and change")
    parser.add_argument("--held-out", type=int, default=60, help="held-out pieces of each corpus")
    parser.add_argument("--show", type=int, default=3, help="matches of each corpus that are shown")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    train: dict[str, Pieces] = {}
    held_out: dict[str, Pieces] = {}
    for text in options.corpus:
        root = resolve_corpus(text, lambda line: print(line, file=sys.stderr))
        train[root.name], held_out[root.name] = {}, {}
        for path in sorted(find_files(root)):
            if path.suffix in midi.MIDI_SUFFIXES:
                score = midi.read_scores(path)[0][0]
                part = train if split_of(midi.fingerprint(score)) == "train" else held_out
                part[root.name][f"{root.name}/{file_name(path, root)}"] = score
    index = Index.of(pair for pieces in train.values() for pair in pieces.items())
    with tempfile.TemporaryDirectory() as folder:
        index.write(Path(folder) / "index")
        size = (Path(folder) / "index").stat().st_size
        start = time.perf_counter()
        index = Index.read(Path(folder) / "index")
        seconds = time.perf_counter() - start
    print(
        f"{len(index.names):,} pieces, {len(index.lines.pitch):,} notes of lines, "
        f"{size / 1e6:.1f} MB, {seconds:.2f} s to read\n"
    )

    planted = {corpus: copies(index, pieces, held_out[corpus], options.n) for corpus, pieces in train.items()}
    print(f"Share of planted passages that are found, {options.n} of each ({', '.join(map(str, LENGTHS))} bars):\n")
    rows = [["", *planted]]
    for change in CHANGES:
        rows.append(
            [change, *(", ".join(f"{share:.0%}" for share in one[change].values()) for one in planted.values())]
        )
    table(rows)

    known = {key for pieces in train.values() for score in pieces.values() for key in likeness(score)}
    results: dict[str, dict[str, Any]] = {}
    shown = []
    start = time.process_time()
    for corpus, pieces in held_out.items():
        chosen = random.Random(2).sample(sorted(pieces), min(options.held_out, len(pieces)))
        found = {name: index.compare(pieces[name], 1, NORMAL_BARS) for name in chosen}
        results[corpus] = alarms(found)
        own = {name: one for name, one in found.items() if known.isdisjoint(likeness(pieces[name]))}
        results[f"{corpus}, no version in train"] = alarms(own)
        worst = sorted(own, key=lambda name: -own[name].longest_bars)[: options.show]
        shown += [f"{name}: {match}" for name in worst for match in own[name].matches[:1]]
    seconds = (time.process_time() - start) / max(1, sum(one["pieces"] for one in results.values()) / 2)
    print(f"Held-out pieces, the first {NORMAL_BARS} bars of each ({seconds:.2f} s each):\n")
    rows = [["", *next(iter(results.values()))]]
    for name, result in results.items():
        rows.append([name, *(f"{value:.1%}" if isinstance(value, float) else str(value) for value in result.values())])
    table(rows)
    print("\n".join(shown))
    if options.json:
        options.json.write_text(json.dumps({"planted": planted, "held_out": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
