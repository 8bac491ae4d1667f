"""What a user may choose, with its defaults, each written once; the flags and their help are made from these fields.

Apart from the code that uses it because `--help` must not wait for torch. The other two sets of choices need no torch
to be read and live with their code: `SamplingConfig` in sampling.py, `GPTConfig` (chosen by preset) in model.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from musicgpt.errors import UsageError

A = TypeVar("A")

BOXED = Path(__file__).with_name("assets") / "model"
"""The model that comes with the package."""


def resolve_boxed(path: Path) -> Path:
    """A path, or BOXED for `boxed` where there is no such path."""
    return BOXED if str(path) == "boxed" and not path.exists() else path


Report = Callable[[str], None]
"""Takes one line for the user."""


class Progress(Protocol):
    """Passes items on and shows how far it is."""

    def __call__(self, items: Iterable[A], total: int, title: str) -> Iterable[A]: ...


def no_progress(items: Iterable[A], total: int, title: str) -> Iterable[A]:
    return items


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A field with its help; `choices` may follow."""
    return field(default=default, metadata={"help": text, **metadata})


WEIGHT_KINDS = ("float32", "bfloat16", "int8")
"""What the matrices of a model may be made into when it is loaded."""


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a corpus becomes shards.

    Raises:
        UsageError: a value outside its range, naming the flag.
    """

    kind: str | None = option(None, "what to take from a folder that holds both", choices=("music", "text"))
    tokenizer: str | None = option(
        None,
        "remi (default), tsd, midilike, structured, grid (four voices) for music; bpe (default), bytes, characters "
        "for text; "
        "or a directory that holds a tokenizer",
    )
    vocab_size: int | None = option(None, "learn byte-pair merges up to this many ids (bpe: 4096)")
    controls: bool = option(False, "mark how dense, high, long … the music is, so that it can be asked for (generate)")
    styles: bool = option(
        False, "tell training pieces by the folder they are in, each a style that can be asked for (music only)"
    )
    transpositions: int = option(12, "keys in which each training piece is prepared, the original included")
    dedupe: str = option(
        "exact",
        "what is left out beside exact copies: transposed finds the same piece in another key, resolution or velocity",
        choices=("exact", "transposed"),
    )
    max_document_ids: int | None = option(None, "leave longer documents out (music: 262144; text: no limit)")
    infill: float = option(
        0.0, "so much again of exercises in filling in bars: 1 makes half of the training ids such (music only)"
    )
    infill_ids: int = option(1024, "length of an exercise: --n-positions, or less")
    workers: int | None = option(None, "processes (one per core)")
    scheduler: str | None = option(
        None, "tcp://HOST:PORT of a Dask scheduler, whose workers take the place of local processes", metavar="ADDRESS"
    )
    file_timeout: float = option(20.0, "seconds after which a file that gives no sign of life is given up")
    file_memory: int = option(2048, "MB of memory that reading a file may take, with the program that reads it")

    def __post_init__(self) -> None:
        _at_least(self, 1, "vocab_size", "max_document_ids", "workers")
        _at_least(self, 64, "infill_ids")  # hardly a hole fits less, and all are tried
        if not 0 <= self.infill <= 10:
            raise UsageError(f"--infill {self.infill}: expected 0 (none) to 10 times the ids of the pieces")
        _at_least(self, 512, "file_memory")  # the program itself takes some 300 MB
        if not 0 < self.file_timeout < float("inf"):
            raise UsageError(f"--file-timeout {self.file_timeout}: expected more than 0 seconds")
        if self.dedupe not in ("exact", "transposed"):
            raise UsageError(f"--dedupe {self.dedupe}: expected exact or transposed")
        if not 1 <= self.transpositions <= 24:
            raise UsageError(f"--transpositions {self.transpositions}: expected 1 (the original only) to 24")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a model is trained. None stands for a value that is chosen from the corpus or the machine, and reported.

    Raises:
        UsageError: a value outside its range, naming the flag.
    """

    preset: str | None = option(None, "size of the model; chosen from the size of the corpus when not given")
    n_positions: int = option(1024, "context: how many ids the model sees at once")
    steps: int | None = option(None, "optimizer steps; enough to see each piece ten times when not given")
    batch_size: int = option(8, "sequences in a step (GPT-2: 512)")
    micro_batch: int | None = option(None, "sequences at once in memory of a process; gradients add up to the batch")
    optimizer: str = option(
        "muon",
        "of the matrices inside the blocks, the rest has AdamW; with --init-from adamw",
        choices=("muon", "adamw"),
    )
    learning_rate: float | None = option(
        None, "peak; 5e-3 at 256 wide (adamw: 1e-3 at 512), falling in proportion to the width, at most 1e-2 (1e-3)"
    )
    weight_decay: float = option(0.1, "on matrices and embeddings")
    grad_clip: float = option(1.0, "largest norm of the gradient")
    warmup: float = option(
        0.05, "share of the steps in which the learning rate rises; it then falls to 0 (adamw: by a cosine to a tenth)"
    )
    dropout: float = option(0.1, "after embeddings and on the residual stream, not on attention weights")
    control_weight: float = option(
        0.0, "of a loss by which marks of controls are told apart, in every second step (0.3 was tried; see --controls)"
    )
    checkpoint_every: int | None = option(
        None, "steps between checkpoints, each with a validation and a sample (a twentieth of all, 50 at least)"
    )
    dtype: str | None = option(
        None, "precision of the matrix products; bfloat16 where the hardware has it", choices=("float32", "bfloat16")
    )
    keep_checkpoints: int = option(2, "newest checkpoints to keep, beside the best")
    device: str | None = option(None, "cpu, cuda, mps; the fastest there is when not given")
    parallel: str | None = option(
        None, "under torchrun: each process holds the model (ddp, the default), or a part", choices=("ddp", "fsdp")
    )
    recompute: bool = option(False, "work activations out again on the way back: slower, with far less memory")
    seed: int = option(0, "of weights, order, transpositions and dropout")

    def __post_init__(self) -> None:
        _at_least(self, 1, "n_positions", "steps", "batch_size", "micro_batch")
        _at_least(self, 1, "checkpoint_every", "keep_checkpoints")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"--seed {self.seed}: expected 0 to {2**31 - 1:,}")
        if self.micro_batch is not None and self.batch_size % self.micro_batch:
            raise UsageError(f"--micro-batch {self.micro_batch} does not divide --batch-size {self.batch_size}")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"--dropout {self.dropout}: expected a probability below 1")
        if not 0 <= self.warmup <= 1:
            raise UsageError(f"--warmup {self.warmup}: expected a share of the steps, 0 to 1")
        for name in ("learning_rate", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UsageError(f"{flag(name)} {value}: expected more than 0")
        for name in ("weight_decay", "control_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{flag(name)} {getattr(self, name)}: expected 0 or more")
        if self.optimizer not in ("muon", "adamw"):
            raise UsageError(f"--optimizer {self.optimizer}: expected muon or adamw")
        if self.parallel not in (None, "ddp", "fsdp"):
            raise UsageError(f"--parallel {self.parallel}: expected ddp or fsdp")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise UsageError(f"--dtype {self.dtype}: expected float32 or bfloat16")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _at_least(config: Any, least: int, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise UsageError(f"{flag(name)} {value}: expected at least {least}")
