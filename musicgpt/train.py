"""Shards -> a run: next-token prediction. Knows ids only; what it leaves on disk is in runs.py.

The loss of a step is the mean over all targets of its batch, however it is cut into micro-batches and over processes.
With a weight for it another loss is added in every second step, by which marks of controls are told apart.
The random numbers of a step (dropout) depend on (seed, step, process) alone, its data on (seed, step): a resumed run
goes on as if it had not been stopped.
"""

from __future__ import annotations

import ctypes
import math
import platform
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from musicgpt import __version__
from musicgpt.batches import IGNORED, Batches, windows_in_order
from musicgpt.checkpoint import (
    PREFIX,
    WEIGHTS,
    device_named,
    load_model,
    parse_config,
    resolve_checkpoint,
    save_weights,
)
from musicgpt.compose import LanguageModel
from musicgpt.config import PrepareConfig, Progress, Report, TrainConfig, flag, no_progress
from musicgpt.corpus import resolve_corpus
from musicgpt.distributed import World, gather, joined, rank, recompute, restarted_since, scatter
from musicgpt.errors import CheckpointError, InputError, MusicGPTError, ShardsError, UsageError
from musicgpt.evaluate import Window, baselines, mean_loss
from musicgpt.files import locked, read_json, write_json
from musicgpt.model import GPT, PRESETS, GPTConfig, empty, initialise
from musicgpt.optim import default_learning_rate, learning_rate_at, make_optimizers
from musicgpt.prepare import prepare
from musicgpt.runs import (
    OPTIMIZER,
    Metrics,
    Saved,
    begin,
    checkpoints,
    newest_checkpoint,
    read_saved,
    save_checkpoint,
    tidy,
    where_to_go_on,
)
from musicgpt.shards import Shards, is_shards
from musicgpt.tokenizer import Tokenizer, load_tokenizer

PRESET_FOR_IDS = (("music-tiny", 5_000_000), ("music-small", 50_000_000), ("music-base", math.inf))
"""The preset that `train` picks, up to how many training ids (originals, not transpositions)."""

PASSES = 10
LEAST_STEPS = 200
"""How often each training id is seen when no number of steps is given, and how few steps are still worth it."""

LEAST_INTERVAL = 50
"""Steps between checkpoints, where not said otherwise: each costs a validation and a sample, some seconds."""

VALIDATION_IDS = 65_536
SAMPLE_IDS = 256
MICRO_BATCH_IDS = 4_096
"""What a validation scores, what a sample is long, and what is in memory at once, where not said otherwise."""

CONTRAST_EVERY = 2
"""In one step of so many the marks of controls are learned by comparison too: twice the work of others."""

WITHOUT_MARKS = "--control-weight {}: {} has no marks of controls; leave it out, or prepare the corpus with --controls"

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""From malloc.h."""

IMPATIENCE_SECONDS = 2.0
"""A cluster's scheduler and torchrun may both send a signal: so long they count as one."""

RESUMABLE = ("steps", "checkpoint_every", "keep_checkpoints", "device", "parallel", "recompute", "micro_batch")
"""What may be changed when a run goes on; the rest makes it another run."""

BEFORE = {"optimizer": "adamw"}
"""Of runs that are older than the choice."""

MACHINERY = ("workers", "scheduler", "file_timeout", "file_memory")
"""Choices of `prepare` that say nothing of what is trained on."""


@dataclass
class State:
    """What changes while a run goes on."""

    model: GPT
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    best: float = math.inf
    """The lowest val_loss so far."""


Weights = Callable[[str, torch.Size], Tensor]
"""A weight by its name and shape."""

Alter = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""`altered` of a tokenizer."""


def train(
    corpus: str,
    run: Path,
    config: TrainConfig,
    prepare_config: PrepareConfig,
    *,
    given: frozenset[str] = frozenset(),
    resume: bool = False,
    init_from: str | None = None,
    force: bool = False,
    report: Report = print,
    progress: Progress = no_progress,
    meter: Any = None,
) -> Path:
    """A corpus (files, shards, or a name) -> a run directory; gives the directory of its best checkpoint.

    `given` names the fields of the two configs that the user set, as opposed to left at their defaults. Processes that
    torchrun started train together; it is the first of them that reads the corpus, writes and reports.

    Raises:
        MusicGPTError: anything a user can mend: corpus, flags, checkpoint, room on the disk, a loss that is not finite,
            another process that writes into the same run.
    """
    run = run if run.name.strip(".") else run.resolve()  # which has a name, for what stands beside it
    if rank() > 0:
        report, meter = _silent, None
    elif run.exists() and not run.is_dir():
        raise UsageError(f"{run} is a file; choose another --out")
    elif resume and not run.exists():
        raise UsageError(f"{run} does not exist; there is nothing to resume")
    with ExitStack() as stack:
        if rank() == 0:
            stack.enter_context(locked(run))
        resume = (run / "run.json").is_file() and (resume or restarted_since(run / "run.json"))
        if resume:
            config, prepare_config, init_from = _recorded(run, corpus, config, prepare_config, given, init_from)
        else:
            if not force:
                _refuse_to_replace(run)
            config, prepare_config = _asked(corpus, config, prepare_config, given, init_from)
        if config.preset is not None and config.preset not in PRESETS:
            raise UsageError(f"--preset {config.preset} is unknown; expected one of {', '.join(PRESETS)}")
        world = stack.enter_context(joined(device_named(config.device), config.parallel))
        if world.device.type == "cpu":
            keep_freed_memory()
        _check(corpus, config, given, resume, world)
        world.lead(lambda: tidy(run))
        shards = Shards(world.lead(lambda: _prepared(corpus, run, prepare_config, resume, report, progress)))
        start = world.lead(lambda: newest_checkpoint(run, report)) if resume else None
        if start is not None and read_json(run / "run.json").get("shards") != shards.manifest["checksums"]:
            raise ShardsError(f"{shards.directory} was prepared anew since {run} was begun: begin again with --force")
        tokenizer = load_tokenizer(shards.directory)
        if not resume:
            _check_shards(shards, tokenizer, config, init_from)
        model = _make_model(config, shards, tokenizer, start, init_from, world, report)
        config = _decide(replace(config, n_positions=model.config.n_positions), model.config, shards, world, report)
        state = _make_state(model, config, start)
        if start is not None:
            report(f"resuming {run} behind step {state.step:,}")
        record = _record(corpus, init_from, config, prepare_config, model.config, shards)
        world.lead(lambda: begin(run, state.step, record, anew=start is None))
        _loop(state, config, shards, tokenizer, run, world, report, meter)
    return resolve_checkpoint(run)


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees, for the rest of the process: the tensors of all steps are alike."""
    with suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        if libc.mallopt(M_MMAP_THRESHOLD, 2**30):  # else it would also stop to adapt them by itself
            libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _silent(text: str) -> None:
    """Reports of processes other than the first."""


def _refuse_to_replace(run: Path) -> None:
    """Raises: UsageError: there is a run, or what is left of one."""
    if any((run / name).exists() for name in ("run.json", "checkpoints", "best")):
        how = "go on with --resume" if (run / "run.json").is_file() else "its run.json is gone"
        raise UsageError(f"{run} holds a run: {how}, choose another --out, or replace it with --force")


def _check(corpus: str, config: TrainConfig, given: frozenset[str], resume: bool, world: World) -> None:
    """Raises: UsageError: flags that do not go with the number of processes, or with a corpus that is prepared."""
    if config.batch_size % (world.size * (config.micro_batch or 1)):
        raise UsageError(
            f"--batch-size {config.batch_size} cannot be cut into equal micro-batches for {world.size} processes"
        )
    needless = sorted(given & {field.name for field in fields(PrepareConfig)})
    if needless and not resume and is_shards(Path(corpus)):
        raise UsageError(f"{flag(needless[0])} does not go with {corpus}, which is prepared already")


def _check_shards(shards: Shards, tokenizer: Tokenizer[Any], config: TrainConfig, init_from: str | None) -> None:
    """Raises: UsageError: a weight for marks there are not; exercises in filling in longer than what the model sees."""
    if config.control_weight and not tokenizer.has_controls:
        raise UsageError(WITHOUT_MARKS.format(config.control_weight, shards.directory))
    source = shards.manifest["source"]
    longest = source.get("infill_ids", 0) if isinstance(source, dict) else 0
    if longest > config.n_positions and init_from is None:
        raise UsageError(
            f"the exercises in {shards.directory} are up to {longest:,} ids long, --n-positions is "
            f"{config.n_positions:,}: make it as much, or prepare them with --infill-ids {config.n_positions}"
        )


def _prepared(corpus: str, run: Path, config: PrepareConfig, resume: bool, report: Report, progress: Progress) -> Path:
    """A corpus -> where its shards are, made if they have to be."""
    path = resolve_corpus(corpus, report)
    if is_shards(path):
        return path
    if resume and is_shards(run / "shards"):
        return run / "shards"  # as they were, whatever became of the corpus: their ids are the model's
    try:
        return prepare(path, run / "shards", config, report=report, progress=progress).directory
    except MusicGPTError:
        with suppress(OSError):  # nothing came of it: leave no empty folder behind
            run.rmdir()
        raise


def _recorded(
    run: Path,
    corpus: str,
    config: TrainConfig,
    prepare_config: PrepareConfig,
    given: frozenset[str],
    init_from: str | None,
) -> tuple[TrainConfig, PrepareConfig, str | None]:
    """What a run was begun with; only what is RESUMABLE is taken from the new command."""
    recorded = read_json(run / "run.json")
    if recorded["corpus"] != corpus:
        raise UsageError(f"{run} was begun on {recorded['corpus']}, not on {corpus}; name that to resume it")
    if init_from not in (None, recorded["init_from"]):
        began = "without one" if recorded["init_from"] is None else f"from {recorded['init_from']}"
        raise UsageError(f"--init-from {init_from}: this run began {began}; leave it out to resume")
    try:  # a choice that is younger than the run was not made in it: its default
        begun, prepared = TrainConfig(**(BEFORE | recorded["train"])), PrepareConfig(**recorded["prepare"])
    except TypeError as error:
        raise CheckpointError(f"run.json was written by another version: {error}") from error
    chosen = asdict(config) | asdict(prepare_config)
    for name, before in (asdict(begun) | asdict(prepared)).items():
        now = chosen[name]
        if name in given and name not in (*RESUMABLE, *MACHINERY) and now != before:
            raise UsageError(
                f"{flag(name)} {now} differs from {before}, with which this run began; leave it out to resume"
            )
    changed = {name: chosen[name] for name in RESUMABLE if name in given}
    changed["parallel"] = config.parallel  # how the processes of now work together, if there are several
    return replace(begun, **changed), prepared, recorded["init_from"]


def _asked(
    corpus: str, config: TrainConfig, prepare_config: PrepareConfig, given: frozenset[str], init_from: str | None
) -> tuple[TrainConfig, PrepareConfig]:
    """What a new run begins with: what was left open follows from what was given.

    Of a run that goes on from another checkpoint, shape and vocabulary are those of the checkpoint.
    """
    if init_from is not None:
        for name in ("preset", "n_positions", "tokenizer", "vocab_size"):
            if name in given:
                raise UsageError(
                    f"{flag(name)} does not go with --init-from: shape and vocabulary are the checkpoint's"
                )
        prepare_config = replace(prepare_config, tokenizer=str(resolve_checkpoint(init_from)))
        if "optimizer" not in given:  # Muon on weights that AdamW has trained was not measured
            config = replace(config, optimizer="adamw")
    if config.control_weight and not (prepare_config.controls or init_from or is_shards(Path(corpus))):
        raise UsageError(WITHOUT_MARKS.format(config.control_weight, corpus))
    if prepare_config.infill and "infill_ids" not in given:
        prepare_config = replace(prepare_config, infill_ids=config.n_positions)
    return config, prepare_config


def _record(
    corpus: str,
    init_from: str | None,
    config: TrainConfig,
    prepare_config: PrepareConfig,
    shape: GPTConfig,
    shards: Shards,
) -> dict[str, Any]:
    """What stands in run.json, and `_recorded` reads again."""
    return {
        "corpus": corpus,
        "init_from": init_from,
        "train": asdict(config),
        "prepare": asdict(prepare_config),
        "model": asdict(shape),
        "shards": shards.manifest["checksums"],
        "versions": {"musicgpt": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _make_model(
    config: TrainConfig,
    shards: Shards,
    tokenizer: Tokenizer[Any],
    start: Path | None,
    init_from: str | None,
    world: World,
    report: Report,
) -> GPT:
    """New weights of the preset, or those of `start` or `init_from`; dropout is the config's either way.

    The model is made without storage, spread over the processes, and only then filled, weight by weight.
    """
    directory = start if start is not None or init_from is None else resolve_checkpoint(init_from)
    if directory is None:
        shape = _new_shape(config, shards, tokenizer, report)
        torch.manual_seed(config.seed)
        value_of: Weights = partial(_new_weight, shape)
    else:
        if (directory / "tokenizer.json").read_bytes() != (shards.directory / "tokenizer.json").read_bytes():
            raise ShardsError(
                f"{shards.directory} was prepared with another tokenizer than {directory} has; "
                f"prepare the corpus again with --tokenizer {directory}"
            )
        shape, value_of = _own_weights(directory) if directory == start else _foreign_weights(directory)
        report(f"starting from {directory}: {shape.n_parameters:,} weights")
    model = empty(replace(shape, embd_pdrop=config.dropout, resid_pdrop=config.dropout, attn_pdrop=0.0))
    if config.recompute:
        recompute(model)
    world.spread(model)
    world.fill(model, value_of)
    return model.train()


def _new_shape(config: TrainConfig, shards: Shards, tokenizer: Tokenizer[Any], report: Report) -> GPTConfig:
    preset = config.preset
    if preset is None:
        n_ids = shards.manifest["splits"]["train"]["ids_of_originals"]
        preset = next(name for name, most in PRESET_FOR_IDS if n_ids <= most)
        report(f"preset {preset}: the one for {n_ids:,} training ids")
    shape = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        n_positions=config.n_positions,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        **PRESETS[preset],
    )
    report(
        f"{shape.n_layer} layers, {shape.n_embd} wide, {shape.n_positions} positions: {shape.n_parameters:,} weights"
    )
    return shape


def _new_weight(shape: GPTConfig, name: str, size: torch.Size) -> Tensor:
    return initialise(shape, name, torch.empty(size))


def _own_weights(checkpoint: Path) -> tuple[GPTConfig, Weights]:
    """Those of a checkpoint of this run, whose hashes were right: read one at a time, as they are asked for."""
    file = safe_open(checkpoint / WEIGHTS, framework="pt")
    shape = parse_config(read_json(checkpoint / "config.json"), str(checkpoint))
    return shape, lambda name, size: file.get_tensor(PREFIX + name)  # type: ignore[no-untyped-call]


def _foreign_weights(directory: Path) -> tuple[GPTConfig, Weights]:
    model = load_model(directory)
    return model.config, lambda name, size: model.get_parameter(name)


def _decide(config: TrainConfig, shape: GPTConfig, shards: Shards, world: World, report: Report) -> TrainConfig:
    """Fill in what was left to the corpus and the machine, and say what it became."""
    n_ids = shards.manifest["splits"]["train"]["ids_of_originals"]
    if n_ids < 2:
        raise ShardsError(f"{shards.directory} has no training ids; give more music")
    if config.steps is None:
        steps = max(LEAST_STEPS, math.ceil(PASSES * n_ids / (config.batch_size * shape.n_positions)))
        config = replace(config, steps=steps)
        report(
            f"{steps:,} steps: {steps * config.batch_size * shape.n_positions / n_ids:.1f} passes over the training ids"
        )
    assert config.steps is not None
    if config.checkpoint_every is None:
        config = replace(config, checkpoint_every=max(min(LEAST_INTERVAL, config.steps), config.steps // 20))
    if config.dtype is None:
        config = replace(config, dtype="bfloat16" if _has_bfloat16(world.device) else "float32")
        processes = f", {world.size} processes ({world.parallel})" if world.size > 1 else ""
        report(f"{world.device.type}, {config.dtype}{processes}")
    if config.learning_rate is None:
        config = replace(config, learning_rate=default_learning_rate(shape.n_embd, config.optimizer))
    return config


def _has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are done by the hardware; elsewhere they are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _data(shards: Shards, tokenizer: Tokenizer[Any], config: TrainConfig) -> tuple[Batches, list[Window]]:
    """What is trained on, and what is validated on.

    Raises:
        ShardsError: nothing to validate on.
    """
    val_split = shards.split("val")
    batches = Batches(
        shards.split("train"),
        window=tokenizer.window,
        batch_size=config.batch_size,
        n_positions=config.n_positions,
        seed=config.seed,
        eos_id=tokenizer.eos_id,
        unscored=tokenizer.unscored,
        whole=tokenizer.whole,
    )
    if val_split.n_documents == 0:
        raise ShardsError(f"{shards.directory} has nothing to validate on; give more pieces")
    windows = windows_in_order(
        val_split, n_positions=config.n_positions, limit=VALIDATION_IDS, unscored=tokenizer.unscored
    )
    return batches, windows


def _loop(
    state: State,
    config: TrainConfig,
    shards: Shards,
    tokenizer: Tokenizer[Any],
    run: Path,
    world: World,
    report: Report,
    meter: Any,
) -> None:
    assert config.steps is not None
    assert config.checkpoint_every is not None
    batches, windows = _data(shards, tokenizer, config)
    if state.step == 0 and world.is_first:
        floors = baselines(shards.split("train"), windows, tokenizer.vocab_size)
        report("validation without a model: " + ", ".join(f"{name} {loss:.3f}" for name, loss in floors.items()))
        write_json(run / "baselines.json", floors)
    objective = world.objective(state.model)
    alter = tokenizer.altered if config.control_weight and tokenizer.has_controls else None
    interrupted = False
    with _interrupts() as asked, Metrics(run) if world.is_first else nullcontext() as metrics:
        written = time.perf_counter()
        while state.step < config.steps and not interrupted:
            began = time.perf_counter()
            row = {"step": state.step + 1, **_step(state, objective, batches, alter, config, world, run)}
            row["tokens_per_second"] = round(config.batch_size * config.n_positions / (time.perf_counter() - began), 1)
            row["epoch"] = round(batches.epoch(state.step), 4)
            interrupted = world.sum(len(asked)) > [0]  # all stop behind the same step
            validated = state.step % config.checkpoint_every == 0 or state.step == config.steps
            if validated:
                # every process scores all of it: then all know the result, and it is the same for any number of them
                row["val_loss"] = mean_loss(state.model, windows, _autocast(config))
                if not math.isfinite(row["val_loss"]):  # nothing of this is worth a checkpoint
                    raise _not_finite(f"the validation loss behind step {state.step}", batches, state.step - 1, run)
            is_best = validated and row["val_loss"] < state.best
            if metrics is not None:  # before the checkpoint: no step that is saved may be missing here
                row["seconds"], written = round(time.perf_counter() - written, 3), time.perf_counter()
                metrics.add(row, durable=validated or interrupted)
            if meter is not None:
                meter(row, config.steps)
            if validated or interrupted:  # stopped, it does not validate: it would not have done so here by itself
                state.best = min(state.best, row.get("val_loss", math.inf))
                _save(state, config, tokenizer, run, world, is_best)
            if validated:
                world.lead(lambda: _write_sample(state, tokenizer, run, world, config.seed))
    if interrupted:
        report(f"stopped behind step {state.step:,}, all saved; go on with the same command and --resume")
    else:
        report(f"done: {state.step:,} steps, lowest validation loss {state.best:.4f} in {run / 'best'}")


def _step(
    state: State,
    objective: nn.Module,
    batches: Batches,
    alter: Alter | None,
    config: TrainConfig,
    world: World,
    run: Path,
) -> dict[str, float]:
    """One update of the weights; advances `state.step`."""
    assert config.steps is not None
    assert config.learning_rate is not None
    learning_rate = config.learning_rate * learning_rate_at(
        state.step, config.optimizer, steps=config.steps, warmup=config.warmup
    )
    for optimizer in state.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
    torch.manual_seed((config.seed << 32) + state.step * world.size + world.rank)
    rows = world.part(config.batch_size)
    ids, targets = batches.rows(state.step, rows)
    batch, size = [ids, targets], _rows_at_once(ids, config.micro_batch)
    compared: list[Tensor] = []
    if alter is not None and state.step % CONTRAST_EVERY == 0:
        compared += _altered(alter, ids, [(config.seed, state.step, row) for row in range(rows.start, rows.stop)])
    scored, segments = world.sum(int((targets != IGNORED).sum()), int(compared[1].amax(1).sum()) if compared else 0)
    if segments:
        batch += compared
        size = max(1, size // 2)  # of each row there are two in memory
    shares = [0.0, 0.0]
    parts = list(zip(*(torch.split(tensor, size) for tensor in batch), strict=True))
    for i, part in enumerate(parts, 1):
        with (
            world.unsynchronised(objective, i < len(parts)),
            torch.autocast(world.device.type, _autocast(config), enabled=_autocast(config) is not None),
        ):
            nats, of_marks = objective(*(tensor.to(world.device) for tensor in part))
            loss, control_loss = nats / scored, of_marks / max(1, segments)
            # gradients are averaged over the processes; we want their sum
            torch.autograd.backward((loss + config.control_weight * control_loss) * world.size)
        shares = [shares[0] + float(loss.detach()), shares[1] + float(control_loss.detach())]
    total, total_of_marks = world.sum(*shares)
    norm = float(gather(torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip)))
    if not math.isfinite(total) or not math.isfinite(norm):
        raise _not_finite(f"the loss of step {state.step + 1} ({total}, gradient {norm})", batches, state.step, run)
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    state.step += 1
    of_controls = {"control_loss": total_of_marks} if segments else {}
    return {"loss": total, **of_controls, "learning_rate": learning_rate, "grad_norm": norm}


def _altered(alter: Alter, ids: Tensor, seeds: list[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
    """(B, T) ids, and a seed for each row -> the ids altered, and (B, T) the segment of each target."""
    pairs = [alter(row, np.random.default_rng(seed)) for row, seed in zip(ids.numpy(), seeds, strict=True)]
    altered_ids, segments = (torch.from_numpy(np.stack(rows)) for rows in zip(*pairs, strict=True))
    return altered_ids, F.pad(segments[:, 1:], (0, 1))  # a target is the next id; what the last is, is not known here


def _rows_at_once(ids: Tensor, size: int | None) -> int:
    """Rows of a micro-batch; where not said, the largest divisor of all rows that keeps within MICRO_BATCH_IDS."""
    rows, n_positions = ids.shape
    fits = max(1, MICRO_BATCH_IDS // n_positions)
    return size or max(n for n in range(1, fits + 1) if rows % n == 0)


def _autocast(config: TrainConfig) -> torch.dtype | None:
    return torch.bfloat16 if config.dtype == "bfloat16" else None


def _not_finite(what: str, batches: Batches, step: int, run: Path) -> MusicGPTError:
    return MusicGPTError(
        f"{what} is not finite; training documents of the batch: {batches.documents(step)}; {where_to_go_on(run)}. "
        f"Try a lower --learning-rate, or --dtype float32"
    )


def _save(state: State, config: TrainConfig, tokenizer: Tokenizer[Any], run: Path, world: World, is_best: bool) -> None:
    named = list(state.model.named_parameters())
    weights = world.gathered(named)
    moments = world.gathered(
        (f"{key}/{name}", value)
        for name, weight in named
        for optimizer in state.optimizers
        for key, value in optimizer.state.get(weight, {}).items()
    )
    world.lead(
        lambda: save_checkpoint(
            run,
            Saved(state.step, state.best),
            lambda directory: save_weights(directory, state.model.config, weights, tokenizer),
            lambda path: save_file(moments, path),
            is_best=is_best,
            keep=config.keep_checkpoints,
        )
    )


def _make_state(model: GPT, config: TrainConfig, start: Path | None) -> State:
    """That of a run that begins, or goes on behind the checkpoint `start`."""
    assert config.learning_rate is not None
    optimizers = make_optimizers(
        model, config.optimizer, learning_rate=config.learning_rate, weight_decay=config.weight_decay
    )
    return State(model, optimizers) if start is None else _load_state(start, model, optimizers)


def _load_state(checkpoint: Path, model: GPT, optimizers: list[torch.optim.Optimizer]) -> State:
    saved = read_saved(checkpoint)
    state_of = {
        weight: optimizer.state
        for optimizer in optimizers
        for group in optimizer.param_groups
        for weight in group["params"]
    }
    with safe_open(checkpoint / OPTIMIZER, framework="pt") as file, torch.no_grad():
        if {key.split("/", 1)[1] for key in file.keys()} != {name for name, _ in model.named_parameters()}:  # noqa: SIM118
            raise CheckpointError(f"{checkpoint / OPTIMIZER} is of other weights than {checkpoint / WEIGHTS}")
        for key in file.keys():  # noqa: SIM118
            kind, name = key.split("/", 1)
            weight, value = model.get_parameter(name), file.get_tensor(key)
            if value.shape == weight.shape:
                moment = torch.empty_like(weight, requires_grad=False)
                scatter(value, moment)
            else:  # a number of steps
                moment = value.to(weight.device)
            state_of[weight][weight][kind] = moment
    return State(model, optimizers, saved.step, saved.best)


def _write_sample(state: State, tokenizer: Tokenizer[Any], run: Path, world: World, seed: int) -> None:
    """What the model writes from nothing, to hear or read how far it has come.

    Of one that is spread over the processes, the checkpoint that was just saved writes it, on the host.
    """
    model = LanguageModel(load_model(checkpoints(run)[0]) if world.parallel == "fsdp" else state.model, tokenizer)
    (run / "samples").mkdir(exist_ok=True)
    with suppress(InputError):  # not one complete note: a model that has learned nothing yet
        piece = model.generate(max_new_tokens=SAMPLE_IDS, seed=seed)
        piece.save(run / "samples" / f"step_{state.step:06d}{tokenizer.suffixes[0]}")
    state.model.train()


@contextmanager
def _interrupts() -> Iterator[list[float]]:
    """A list that fills when the user (Ctrl-C) or the system asks to stop: the step is finished and saved first."""
    asked: list[float] = []

    def ask(number: int, frame: object) -> None:
        asked.append(time.monotonic())
        if asked[-1] - asked[0] > IMPATIENCE_SECONDS:  # once more means now; sooner it is the same, by another way
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever started it handles signals
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
