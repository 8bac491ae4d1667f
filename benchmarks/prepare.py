"""What `musicgpt prepare` takes: time and memory at two sizes of corpus, and from that an estimate for a million files.

    python benchmarks/prepare.py CORPUS... [--files 5000 50000] [--workers N] [--transpositions 1] [--folder DIRECTORY]
    python benchmarks/prepare.py CORPUS... --beside-bare ROUNDS [--workers N]

The files are those of the corpora in turn, each with its notes transposed and its velocities changed by chance, so
that none is a copy of another. Memory is the resident set, seen five times a second; what processes share counts for
each. The parent is the process that collects and writes.

The second form takes the files as they are, and in turn a bare loop over miditok: read, tokenize, forget, in one
process whose start does not count. That of `prepare` does, as does all else it does: mend, compare, split, write.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from symusic.core import NoteTickList

from musicgpt import midi
from musicgpt.corpus import find_files
from musicgpt.errors import MusicGPTError
from musicgpt.shards import Shards
from musicgpt.tokenizer import new_tokenizer

PERIOD = 0.2

MILLION = 1_000_000


def write_copies(sources: list[Path], folder: Path, n: int) -> None:
    """`n` different files, in folders of a thousand."""
    chance = np.random.default_rng(1)
    made = 0
    while made < n:
        for path in sources[: n - made]:
            (score, *_), _ = midi.read_scores(path)
            copy = midi.transposed(score, int(chance.integers(-3, 4))) or score
            for track in copy.tracks:
                notes = track.notes.numpy()
                velocity = np.clip(notes["velocity"] + chance.integers(-9, 10, len(notes["velocity"])), 1, 127)
                track.notes = NoteTickList.from_numpy(
                    notes["time"], notes["duration"], notes["pitch"], velocity.astype(notes["velocity"].dtype)
                )
            target = folder / f"{made // 1000:03d}" / f"{made:06d}.mid"
            target.parent.mkdir(exist_ok=True)
            midi.write_midi(copy, target)
            made += 1


def usable(path: Path) -> bool:
    try:
        return path.suffix == ".mid" and len(midi.read_scores(path)[0]) == 1
    except MusicGPTError:
        return False


BARE = """
import sys, time
from pathlib import Path
from miditok import REMI
from symusic import Score
tokenizer = REMI(params=sys.argv[2])
paths = sorted(Path(sys.argv[1]).iterdir())
tokenizer(Score(paths[0]))
start, busy, notes = time.perf_counter(), time.process_time(), 0
for path in paths:
    score = Score(path)
    notes += score.note_num()
    tokenizer(score)
print(notes, time.perf_counter() - start, time.process_time() - busy)
"""


def compare(sources: list[Path], folder: Path, workers: int, rounds: int) -> None:
    """Notes a second of `prepare`, original keys only, beside those of the bare loop times the workers."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, path in enumerate(sources):
        shutil.copy(path, corpus / f"{i:05d}.mid")
    new_tokenizer("remi").save(folder)
    command = [sys.executable, "-c", BARE, str(corpus), str(folder / "tokenizer.json")]
    bare, ours, bare_cpu, ours_cpu = [], [], [], []
    for i in range(rounds):
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        notes, seconds, busy = map(float, done.stdout.split())
        bare.append(notes / seconds)
        bare_cpu.append(busy)
        measured = measure(corpus, folder / f"shards{i}", workers, 1)
        ours.append(measured.notes / measured.seconds)
        ours_cpu.append(measured.cpu_seconds)
    loop, whole = statistics.median(bare), statistics.median(ours)
    cpu, all_cpu = statistics.median(bare_cpu), statistics.median(ours_cpu)
    print(f"{len(sources):,} files, {notes:,.0f} notes; medians of {rounds} rounds\n")
    print(f"| | notes a second | to the loop x {workers} | seconds of CPU | of the loop's |\n|---|---|---|---|---|")
    print(f"| bare loop, one process | {loop:,.0f} | {1 / workers:.2f} | {cpu:.1f} | 1.00 |")
    ratios = f"{whole / loop / workers:.2f} | {all_cpu:.1f} | {all_cpu / cpu:.2f}"
    print(f"| prepare, {workers} workers | {whole:,.0f} | {ratios} |")


@dataclass
class Measured:
    files: int
    notes: int
    ids: int
    seconds: float
    cpu_seconds: float
    parent_seconds: float
    parent_peak: float
    """In MB, as that of all."""
    peak: float


def measure(corpus: Path, out: Path, workers: int, transpositions: int) -> Measured:
    flags = f"--workers {workers} --transpositions {transpositions}"
    command = [sys.executable, "-m", "musicgpt", "prepare", str(corpus), "--out", str(out), *flags.split()]
    began = time.perf_counter()
    parent = psutil.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    spent: dict[int, float] = {}
    parent_peak = peak = 0.0
    while parent.poll() is None:
        with suppress(psutil.Error):  # one of them has just ended
            resident = {}
            for process in [parent, *parent.children(recursive=True)]:
                times = process.cpu_times()
                spent[process.pid] = times.user + times.system
                resident[process.pid] = process.memory_info().rss / 2**20
            parent_peak, peak = max(parent_peak, resident[parent.pid]), max(peak, sum(resident.values()))
        time.sleep(PERIOD)
    seconds = time.perf_counter() - began
    assert parent.returncode == 0
    splits = Shards(out).manifest["splits"].values()
    files, notes, ids = (int(sum(split[key] for split in splits)) for key in ("documents", "notes", "ids"))
    return Measured(files, notes, ids, seconds, sum(spent.values()), spent[parent.pid], parent_peak, peak)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path, nargs="+")
    parser.add_argument("--files", type=int, nargs="+", default=[5_000, 50_000])
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--transpositions", type=int, default=1)
    parser.add_argument(
        "--beside-bare", type=int, metavar="ROUNDS", help="compare with a bare loop over miditok instead"
    )
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    options = parser.parse_args()
    print("python benchmarks/prepare.py", *sys.argv[1:])
    print(
        f"{options.workers} processes on {os.cpu_count()} cores; load of the machine before: {os.getloadavg()[0]:.1f}\n"
    )
    if options.beside_bare:
        with tempfile.TemporaryDirectory(prefix="musicgpt-", dir=options.folder) as name:
            sources = [path for corpus in options.corpus for path in sorted(find_files(corpus)) if usable(path)]
            compare(sources, Path(name), options.workers, options.beside_bare)
        return
    titles = "files", "ids", "seconds", "files a second", "CPU ms a file", "parent's", "peak MB", "parent's"
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="musicgpt-", dir=options.folder) as name:
        folder = Path(name)
        sources = [path for corpus in options.corpus for path in sorted(find_files(corpus)) if usable(path)]
        random.Random(1).shuffle(sources)
        for n in options.files:
            corpus = folder / str(n)
            corpus.mkdir()
            write_copies(sources, corpus, n)
            m = measure(corpus, folder / f"shards{n}", options.workers, options.transpositions)
            each, own = 1000 * m.cpu_seconds / m.files, 1000 * m.parent_seconds / m.files
            cells = f"{m.files:,}", f"{m.ids:,}", f"{m.seconds:,.0f}", f"{m.files / m.seconds:.0f}", f"{each:.1f}"
            print(f"| {' | '.join(cells)} | {own:.2f} | {m.peak:,.0f} | {m.parent_peak:,.0f} |", flush=True)
    hours, writing = (MILLION / m.files * seconds / 3600 for seconds in (m.cpu_seconds, m.parent_seconds))
    one, many = hours / options.workers, hours / (64 * options.workers)
    print(
        f"\nExtrapolated from the last row, not measured: a million such files take {hours:.1f} hours of CPU. On one "
        f"machine with {options.workers} cores to itself {one:.1f} hours; on 64 through Dask {max(many, writing):.1f}, "
        f"where the process that collects and writes is busy for {writing:.1f} (the network left out)."
    )


if __name__ == "__main__":
    main()
