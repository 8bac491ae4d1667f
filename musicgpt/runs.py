"""A run on disk: what was asked, what came of each step, and checkpoints to go on from.

    RUN/run.json             the whole configuration, written before step 0
    RUN/shards/              the prepared corpus, unless shards were given
    RUN/baselines.json       what guessing without a model comes to, on the validation windows
    RUN/metrics.jsonl        an object for each step: step, loss, …; val_loss where there was a validation
    RUN/samples/             what the model writes unprompted, at each validation
    RUN/checkpoints/000400/  the model behind that step, with the optimizer's moments; the newest few are kept
    RUN/best/                the model of the lowest val_loss

A checkpoint is written beside, flushed and renamed, and has the hashes of its files: one that is cut short or altered
is never taken for whole, and the one before it serves instead.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from musicgpt.config import Report
from musicgpt.errors import CheckpointError, InputError
from musicgpt.files import directory_in_place, read_json, recover, sha256, write_bytes, write_json

OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"
HASHES = "sha256.json"


@dataclass(frozen=True)
class Saved:
    """How far a run has come."""

    step: int = 0
    best: float = math.inf
    """The lowest val_loss so far."""


def checkpoints(run: Path) -> list[Path]:
    """Those to go on from, the newest first, whole or not."""
    found = [path for path in (run / "checkpoints").glob("*") if path.name.isdecimal()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def save_checkpoint(
    run: Path,
    saved: Saved,
    write_model: Callable[[Path], None],
    write_moments: Callable[[Path], None],
    *,
    is_best: bool,
    keep: int,
) -> None:
    """Write RUN/checkpoints/STEP and, where it is the best so far, RUN/best; then only the newest `keep` stay.

    Raises:
        InputError: it cannot be written; all that was there is as it was.
    """
    try:
        if is_best:  # first: the other one says how good the best is, and must not say so of one never written
            with directory_in_place(run / "best") as beside:
                write_model(beside)
        with directory_in_place(run / "checkpoints" / f"{saved.step:06d}") as beside:
            write_model(beside)
            write_moments(beside / OPTIMIZER)
            write_json(beside / STATE, {"step": saved.step, "best": saved.best})
            write_json(beside / HASHES, {path.name: sha256(path) for path in sorted(beside.iterdir())})
    except (InputError, SafetensorError) as error:
        raise no_room(run, f"cannot write a checkpoint: {error}") from error
    for old in checkpoints(run)[keep:]:
        shutil.rmtree(old, ignore_errors=True)


def newest_checkpoint(run: Path, report: Report) -> Path | None:
    """The newest checkpoint that is whole, or None where there never was one; what is passed over is reported.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    found = checkpoints(run)
    for path in found:
        harm = _harm(path)
        if harm is None:
            return path
        report(f"{path} is not whole ({harm}): going back to the one before")
    if found:
        raise CheckpointError(f"no checkpoint of {run} is whole; begin again with --force")
    return None


def _harm(path: Path) -> str | None:
    """What is wrong with a checkpoint, if anything."""
    try:
        hashes = read_json(path / HASHES)
        found = {file.name: sha256(file) for file in path.iterdir() if file.is_file()}
    except (InputError, OSError) as error:
        return str(error)
    # what others left there, such as .DS_Store, is nobody's harm
    wrong = sorted(name for name in {OPTIMIZER, STATE, *hashes} if hashes.get(name, "") != found.get(name))
    return f"{wrong[0]} is missing, cut short or altered" if wrong else None


def read_saved(checkpoint: Path) -> Saved:
    values = read_json(checkpoint / STATE)
    return Saved(int(values["step"]), float(values["best"]))


def no_room(run: Path, what: str) -> InputError:
    return InputError(f"{what}; {where_to_go_on(run)}: make room, then go on with --resume")


def where_to_go_on(run: Path) -> str:
    """For messages."""
    found = checkpoints(run)
    return f"the last good checkpoint is {found[0]}" if found else "no checkpoint was written yet"


def begin(run: Path, step: int, record: dict[str, Any], *, anew: bool) -> None:
    """Make ready for the steps behind `step`; what a run that is begun `anew` replaces is gone, but for its shards."""
    for part in ("checkpoints", "best", "samples") if anew else ():
        shutil.rmtree(run / part, ignore_errors=True)
    for path in checkpoints(run):
        if int(path.name) > step:  # it was passed over: it must not be counted among those to keep
            shutil.rmtree(path)
    run.mkdir(parents=True, exist_ok=True)
    cut_metrics(run, step)
    write_json(run / "run.json", record)


def tidy(run: Path) -> None:
    """Finish or take away what a process that died was writing; only for whoever has the run locked."""
    recover(run / "best")
    for folder in (run, run / "checkpoints"):
        for path in folder.glob(".*.tmp"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut_metrics(run: Path, step: int) -> None:
    """Leave out the steps that a resumed run will make again, and a line that a kill cut short."""
    path = run / "metrics.jsonl"
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                break
    write_bytes(path, "".join(kept).encode())


class Metrics:
    """RUN/metrics.jsonl, a line for each step as it is made; a context manager.

    Raises:
        InputError: it cannot be written.
    """

    def __init__(self, run: Path) -> None:
        self.run = run

    def __enter__(self) -> Metrics:
        self.file = open(self.run / "metrics.jsonl", "a", encoding="utf-8")
        return self

    def add(self, row: Mapping[str, float], *, durable: bool) -> None:
        """`durable` where a checkpoint follows, which must not outlast what led to it."""
        try:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()
            if durable:
                os.fsync(self.file.fileno())
        except OSError as error:
            raise no_room(self.run, f"cannot write {self.file.name}: {error.strerror or error}") from error

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # what could not be written was reported when it was added
            self.file.close()
