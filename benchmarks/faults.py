"""What a training loses when it is killed, starved of disk or robbed of a file, at random moments.

    python benchmarks/faults.py [--faults 100] [--seed 0]

Each trial starts a real training through the command line, does it harm at a random moment, and goes on with --resume
until it is done. Lost are the steps that had been made and had to be made again. "Equal" means that weights, moments
and every logged loss are those of the undisturbed run, bit for bit.

    SIGKILL      the process ends at once
    SIGTERM      it is asked to end, as by a cluster's scheduler
    killed rank  one of two processes under torchrun --max-restarts ends at once; torchrun starts both again
    full disk    files cannot grow beyond a random size (RLIMIT_FSIZE): the next checkpoint does not fit
    torn file    SIGKILL, and a random file of the newest checkpoint is cut short or has one bit turned
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import psutil

from musicgpt.files import sha256
from musicgpt.midi import read_abc, write_midi
from musicgpt.runs import checkpoints

STEPS, EVERY = 30, 5
STEP_SECONDS = 0.05
"""Behind a step that was logged, harm comes within so long."""

SHAPE = (
    f"--preset nano --n-positions 64 --batch-size 4 --dropout 0.1 --device cpu --dtype float32 "
    f"--steps {STEPS} --checkpoint-every {EVERY}"
).split()
KINDS = {"SIGKILL": 35, "SIGTERM": 20, "killed rank": 15, "full disk": 15, "torn file": 15}
"""Trials of each kind in a hundred."""


class Trainings:
    """Trainings on the same shards, by one process or by two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        corpus = folder / "corpus"
        corpus.mkdir()
        spec = find_spec("music21")
        assert spec is not None, "needs the [corpus] extra"
        book = Path(str(spec.origin)).parent / "corpus" / "airdsAirs" / "book1.abc"
        for i, score in enumerate(read_abc(book.read_text(errors="replace"), book.name)[:60]):
            write_midi(score, corpus / f"{i:03d}.mid")
        prepare = f"prepare {corpus} --out {folder / 'shards'} --transpositions 3".split()
        subprocess.run([sys.executable, "-m", "musicgpt", *prepare], check=True, capture_output=True)

    def start(self, run: Path, *, processes: int = 1, limit: int | None = None) -> subprocess.Popen[str]:
        command = ["-m", "musicgpt", "train", str(self.folder / "shards"), "--out", str(run), *SHAPE]
        if run.exists():
            command.append("--resume")
        if processes > 1:
            launch = f"-m torch.distributed.run --nproc-per-node {processes} --max-restarts 3".split()
            command = [*launch, *command]

        def starve() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen([sys.executable, *command], **quiet, text=True, preexec_fn=starve)

    def finish(self, run: Path, processes: int = 1) -> str:
        """Go on to the end; what it said."""
        child = self.start(run, processes=processes)
        _, said = child.communicate()
        if child.returncode:
            raise RuntimeError(said)
        return said


def losses(run: Path) -> list[float]:
    """Of the steps that are logged, whole lines only."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.is_file() else []
    return [value for line in lines for key, value in json.loads(line).items() if key in ("loss", "val_loss")]


def steps_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def outcome(run: Path) -> tuple[object, ...]:
    """All that has to be the same."""
    last = checkpoints(run)[0]
    assert last.name == f"{STEPS:06d}", f"{run} ended behind step {last.name}"
    return tuple(sha256(last / f"{name}.safetensors") for name in ("model", "optimizer")), losses(run)


def await_moment(child: subprocess.Popen[str], run: Path, moment: float) -> None:
    """Wait until so many steps are made, and for what is behind the point into what follows: a step or a checkpoint."""
    while steps_done(run) < int(moment):
        time.sleep(0.001)
        if child.poll() is not None:
            raise RuntimeError(child.communicate()[1])
    time.sleep(moment % 1 * STEP_SECONDS)


def harm(kind: str, trainings: Trainings, run: Path, moment: float, rng: random.Random) -> tuple[int, int]:
    """Start a training, disturb it, and stop just before it is resumed: steps made, and the step to go on from."""
    child = trainings.start(run)
    await_moment(child, run, moment)
    child.send_signal(signal.SIGTERM if kind in ("SIGTERM", "full disk") else signal.SIGKILL)
    child.communicate()
    if kind == "full disk" and steps_done(run) < STEPS:
        child = trainings.start(run, limit=rng.randrange(100_000, 7_000_000))
        _, said = child.communicate()
        assert child.returncode == 1, said
        assert "Traceback" not in said, said
        assert "make room, then go on with --resume" in said, said
    made = steps_done(run)
    found = checkpoints(run)
    if kind == "torn file" and found:
        path = rng.choice(sorted(found[0].iterdir()))
        data = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        found = found[1:]
        if not found:  # it was the only one: then the run is begun again, which is what the error says to do
            shutil.rmtree(run)
    return made, int(found[0].name) if found else 0


def harm_rank(trainings: Trainings, run: Path, moment: float, rng: random.Random) -> tuple[int, int]:
    """Kill one of two processes; torchrun goes on by itself, to the end."""
    child = trainings.start(run, processes=2)
    await_moment(child, run, moment)
    ranks = [one for one in psutil.Process(child.pid).children() if "--out" in one.cmdline()]
    made, found = steps_done(run), checkpoints(run)
    newest = int(found[0].name) if found else 0
    os.kill(rng.choice(ranks).pid, signal.SIGKILL)
    _, said = child.communicate()
    assert child.returncode == 0, said
    return made, newest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rng = random.Random(options.seed)
    table: dict[str, list[tuple[int, bool]]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="musicgpt-") as folder:
        trainings = Trainings(Path(folder))
        whole, seconds = {}, {}
        for processes in (1, 2):
            began = time.perf_counter()
            trainings.finish(Path(folder) / f"whole{processes}", processes)
            seconds[processes] = time.perf_counter() - began
            whole[processes] = outcome(Path(folder) / f"whole{processes}")
        alone, together = seconds.values()
        print(f"{STEPS} steps, a checkpoint every {EVERY}; undisturbed {alone:.1f} s, two processes {together:.1f} s\n")
        print("trial  harm           at step  steps made  goes on from  lost  equal")
        kinds = [kind for kind, share in KINDS.items() for _ in range(round(share * options.faults / 100))]
        rng.shuffle(kinds)
        for trial, kind in enumerate(kinds, 1):
            run = Path(folder) / f"trial{trial}"
            processes = 2 if kind == "killed rank" else 1
            moment = rng.uniform(EVERY + 1 if kind == "torn file" else 0, STEPS - 1)
            if processes == 2:
                made, newest = harm_rank(trainings, run, moment, rng)
            else:
                made, newest = harm(kind, trainings, run, moment, rng)
                trainings.finish(run)
            equal = outcome(run) == whole[processes]
            table[kind].append((made - newest, equal))
            shutil.rmtree(run)
            row = f"{trial:5}  {kind:12} {moment:9.2f} {made:11} {newest:13} {made - newest:5}"
            print(f"{row}  {'yes' if equal else 'NO'}", flush=True)
    print("\nharm         trials  most steps lost  mean  equal to the undisturbed run")
    for kind, rows in table.items():
        lost = [steps for steps, _ in rows]
        equal_ones = sum(equal for _, equal in rows)
        print(f"{kind:12} {len(rows):6} {max(lost):16} {sum(lost) / len(lost):5.1f}  {equal_ones} of {len(rows)}")
    sys.exit(not all(equal for rows in table.values() for _, equal in rows))


if __name__ == "__main__":
    main()
