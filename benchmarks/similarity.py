"""What musicgpt.similarity finds: of changed copies, of different files of a corpus, and what it costs.

    python benchmarks/similarity.py CORPUS... [-n 60] [--pairs 12]

A corpus is a folder of MIDI files, or `folk` or `chorales`. Prints the share of copies found, by kind of change and
corpus (every copy is written as MIDI and read again); then, among all files of each corpus, how many share a key, with
a sample of the pairs to judge by ear or title; then milliseconds a file.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from symusic.core import ScoreTick

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from changes import CHANGES

from musicgpt import midi
from musicgpt.corpus import find_files, resolve_corpus
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.similarity import likeness


def table(rows: list[list[str]]) -> None:
    print("\n".join(["| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]), "\n")


def read(path: Path) -> ScoreTick:
    return midi.read_scores(path)[0][0]


def copies(corpora: dict[str, list[Path]], n: int) -> None:
    share: dict[str, list[str]] = {change: [] for change in CHANGES}
    total = 0
    for files in corpora.values():
        chance = random.Random(1)
        found: dict[str, list[bool]] = {change: [] for change in CHANGES}
        for path in chance.sample(files, min(n, len(files))):
            score, total = read(path), total + 1
            keys = set(likeness(score))
            for name, change in CHANGES.items():
                copy = change(score, chance)
                if copy is not None and copy.note_num():
                    again = midi.read_midi(copy.dumps_midi(), name)
                    found[name].append(not keys.isdisjoint(likeness(again)))
        for name, results in found.items():
            share[name].append(f"{statistics.mean(results):.0%}" if results else "")
    print(f"Share of copies that share a key with the original, {total} files:\n")
    table([["", *corpora], *([name, *cells] for name, cells in share.items())])


def groups(keys: list[set[str]]) -> Iterator[set[int]]:
    """Documents that are alike, over others too."""
    holders: dict[str, set[int]] = defaultdict(set)
    for n, own in enumerate(keys):
        for key in own:
            holders[key].add(n)
    left = set(range(len(keys)))
    while left:
        group, new = set[int](), {left.pop()}
        while new:
            group |= new
            new = {other for n in new for key in keys[n] for other in holders[key]} - group
        left -= group
        yield group


def among_different(corpora: dict[str, list[Path]], sample: int) -> None:
    rows = [["corpus", "files", "alike to none", "groups", "largest", "pairs that share a key", "of a million pairs"]]
    shown: list[str] = []
    all_keys: list[set[str]] = []
    n_groups = 0
    for corpus, files in corpora.items():
        scores = [read(path) for path in files]
        keys = [set(likeness(score)) for score in scores]
        names = [f"{path.parent.name}/{path.stem} ({s.tracks[0].name})" for path, s in zip(files, scores, strict=True)]
        sizes = [len(group) for group in groups(keys)]
        all_keys += keys
        n_groups += len(sizes)
        pairs = [(a, b) for a, b in combinations(range(len(keys)), 2) if keys[a] & keys[b]]
        alone = sizes.count(1)
        row = [len(files), alone, len(sizes) - alone, max(sizes), len(pairs)]
        rows.append([corpus, *(f"{n:,}" for n in row), f"{1e6 * len(pairs) / math.comb(len(keys), 2):.0f}"])
        for a, b in sorted(random.Random(1).sample(pairs, min(sample, len(pairs)))):
            shown.append(f"{len(keys[a] & keys[b]):2} keys: {names[a]} = {names[b]}")
    print("All files of each corpus:\n")
    table(rows)
    print(f"Groups joined across corpora: {n_groups - len(list(groups(all_keys)))}. Pairs, by chance:\n")
    print("\n".join(shown), "\n")


def cost(corpora: dict[str, list[Path]], n: int) -> None:
    tokenizer = MidiTokenizer.new("remi")
    rows = [["milliseconds a file", "read", "encode (REMI)", "likeness", "part of reading and encoding"]]
    for corpus, files in corpora.items():
        spent = dict.fromkeys(("read", "encode", "likeness"), 0.0)
        chosen = random.Random(2).sample(files, min(n, len(files)))
        for path in chosen:
            start = time.perf_counter()
            (score,), _ = tokenizer.read(path)
            read = time.perf_counter()
            tokenizer.likeness(score)
            alike = time.perf_counter()
            tokenizer.encode(score)
            end = time.perf_counter()
            spent["read"] += read - start
            spent["likeness"] += alike - read
            spent["encode"] += end - alike
        each = {kind: 1000 * seconds / len(chosen) for kind, seconds in spent.items()}
        part = each["likeness"] / (each["read"] + each["encode"])
        rows.append([corpus, *(f"{each[kind]:.2f}" for kind in ("read", "encode", "likeness")), f"{part:.1%}"])
    table(rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", nargs="+")
    parser.add_argument("-n", type=int, default=60, help="files of each corpus that are changed")
    parser.add_argument("--pairs", type=int, default=12, help="pairs of each corpus that are shown")
    options = parser.parse_args()
    corpora = {}
    for text in options.corpus:
        root = resolve_corpus(text, lambda line: print(line, file=sys.stderr))
        corpora[root.name] = [path for path in sorted(find_files(root)) if path.suffix in midi.MIDI_SUFFIXES]
    copies(corpora, options.n)
    among_different(corpora, options.pairs)
    cost(corpora, 20)


if __name__ == "__main__":
    main()
