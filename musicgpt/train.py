"""Shards -> a run: next-token prediction with AdamW. Knows ids only.

    RUN/run.json         the whole configuration, written before step 0
    RUN/shards/          the prepared corpus, unless shards were given
    RUN/metrics.jsonl    an object for each step: step, loss, …; val_loss where there was a validation
    RUN/samples/         what the model writes unprompted, at each validation
    RUN/last/, RUN/best/ checkpoints: the newest, with the state to go on from, and the one of the lowest val_loss

The loss of a step is the mean over all targets of its batch, however it is cut into micro-batches. The random numbers
of a step (dropout) depend on (seed, step) alone, as do its data: a resumed run goes on as if it had not been stopped.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from musicgpt import __version__
from musicgpt.batches import IGNORED, Batches, windows_in_order
from musicgpt.checkpoint import device_named, load_model, resolve_checkpoint, save_model
from musicgpt.compose import LanguageModel
from musicgpt.config import PrepareConfig, Progress, Report, TrainConfig, flag, no_progress
from musicgpt.corpus import resolve_corpus
from musicgpt.errors import CheckpointError, InputError, MusicGPTError, ShardsError, UsageError
from musicgpt.evaluate import baselines, mean_loss
from musicgpt.files import directory_in_place, read_json, recover, write_bytes, write_json
from musicgpt.model import GPT, PRESETS, GPTConfig
from musicgpt.optim import default_learning_rate, learning_rate_at, make_optimizer
from musicgpt.prepare import prepare
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

RESUMABLE = ("steps", "checkpoint_every", "device")
"""What may be changed when a run goes on; the rest makes it another run."""


@dataclass
class State:
    """What changes while a run goes on."""

    model: GPT
    optimizer: torch.optim.AdamW
    step: int = 0
    best: float = math.inf


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

    `given` names the fields of the two configs that the user set, as opposed to left at their defaults.

    Raises:
        MusicGPTError: anything a user can mend: corpus, flags, checkpoint, room on the disk, a loss that is not finite.
    """
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is a file; choose another --out")
    recorded = read_json(run / "run.json") if (run / "run.json").is_file() else None
    if recorded is not None and not resume and not force:
        raise UsageError(f"{run} holds a run: go on with --resume, choose another --out, or replace it with --force")
    if resume and not run.exists():
        raise UsageError(f"{run} does not exist; there is nothing to resume")
    resume = resume and recorded is not None
    if resume:
        assert recorded is not None
        if recorded["corpus"] != corpus:
            raise UsageError(f"{run} was begun on {recorded['corpus']}, not on {corpus}; name that to resume it")
        config, prepare_config = _configs_of(recorded, config, prepare_config, given)
        init_from = recorded["init_from"]
    elif init_from is not None:
        for name in ("preset", "n_positions", "tokenizer", "vocab_size"):
            if name in given:
                raise UsageError(
                    f"{flag(name)} does not go with --init-from: shape and vocabulary are the checkpoint's"
                )
        prepare_config = replace(prepare_config, tokenizer=str(resolve_checkpoint(init_from)))
    if config.preset is not None and config.preset not in PRESETS:
        raise UsageError(f"--preset {config.preset} is unknown; expected one of {', '.join(PRESETS)}")
    device = device_named(config.device)
    path = resolve_corpus(corpus, report)
    if is_shards(path):
        shards = Shards(path)
    elif resume and is_shards(run / "shards"):
        shards = Shards(run / "shards")  # as they were, whatever became of the corpus: their ids are the model's
    else:
        try:
            shards = prepare(path, run / "shards", prepare_config, report=report, progress=progress)
        except MusicGPTError:
            with suppress(OSError):  # nothing came of it: leave no empty folder behind
                run.rmdir()
            raise
    tokenizer = load_tokenizer(shards.directory)
    resume = resume and _has_state(run / "last")
    model = _make_model(config, shards, tokenizer, run / "last" if resume else init_from, report)
    config = _decide(replace(config, n_positions=model.config.n_positions), model.config, shards, device, report)
    model.to(device).train()
    assert config.learning_rate is not None
    state = State(model, make_optimizer(model, learning_rate=config.learning_rate, weight_decay=config.weight_decay))
    if resume:
        _load_state(run / "last", state)
        report(f"resuming {run} behind step {state.step:,}")
    else:
        for part in ("last", "best", "samples"):  # of the run that --force replaces
            shutil.rmtree(run / part, ignore_errors=True)
    _cut_metrics(run, state.step)
    write_json(
        run / "run.json",
        {
            "corpus": corpus,
            "init_from": init_from,
            "train": asdict(config),
            "prepare": asdict(prepare_config),
            "model": asdict(model.config),
            "versions": {"musicgpt": __version__, "torch": torch.__version__, "python": platform.python_version()},
        },
    )
    _loop(state, config, shards, tokenizer, run, device, report, meter)
    return resolve_checkpoint(run)


def _configs_of(
    recorded: dict[str, Any], config: TrainConfig, prepare_config: PrepareConfig, given: frozenset[str]
) -> tuple[TrainConfig, PrepareConfig]:
    """The configuration a run was started with; only what is RESUMABLE is taken from the new command."""
    for name, before in (recorded["train"] | recorded["prepare"]).items():
        now = getattr(config, name, None) if hasattr(config, name) else getattr(prepare_config, name)
        if name in given and name not in (*RESUMABLE, "workers") and now != before:
            raise UsageError(
                f"{flag(name)} {now} differs from {before}, with which this run began; leave it out to resume"
            )
    changed = {name: getattr(config, name) for name in RESUMABLE if name in given}
    try:
        return TrainConfig(**(recorded["train"] | changed)), PrepareConfig(**recorded["prepare"])
    except TypeError as error:
        raise CheckpointError(f"run.json was written by another version: {error}") from error


def _make_model(
    config: TrainConfig, shards: Shards, tokenizer: Tokenizer[Any], start: str | Path | None, report: Report
) -> GPT:
    """New weights of the preset, or those of the checkpoint to start from; dropout is the config's either way."""
    dropout: dict[str, Any] = {"embd_pdrop": config.dropout, "resid_pdrop": config.dropout, "attn_pdrop": 0.0}
    if start is not None:
        directory = resolve_checkpoint(start)
        weights = load_model(directory)
        if (directory / "tokenizer.json").read_bytes() != (shards.directory / "tokenizer.json").read_bytes():
            raise ShardsError(
                f"{shards.directory} was prepared with another tokenizer than {directory} has; "
                f"prepare the corpus again with --tokenizer {directory}"
            )
        model = GPT(replace(weights.config, **dropout))
        model.load_state_dict(weights.state_dict())
        report(f"starting from {directory}: {model.config.n_parameters:,} weights")
        return model
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
        **dropout,
    )
    torch.manual_seed(config.seed)
    report(
        f"{shape.n_layer} layers, {shape.n_embd} wide, {shape.n_positions} positions: {shape.n_parameters:,} weights"
    )
    return GPT(shape)


def _decide(config: TrainConfig, shape: GPTConfig, shards: Shards, device: torch.device, report: Report) -> TrainConfig:
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
    if config.micro_batch is None:
        fits = max(1, MICRO_BATCH_IDS // shape.n_positions)
        config = replace(config, micro_batch=max(n for n in range(1, fits + 1) if config.batch_size % n == 0))
    if config.dtype is None:
        config = replace(config, dtype="bfloat16" if _has_bfloat16(device) else "float32")
        report(f"{device.type}, {config.dtype}")
    if config.learning_rate is None:
        config = replace(config, learning_rate=default_learning_rate(shape.n_embd))
    return config


def _has_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are done by the hardware; elsewhere they are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _loop(
    state: State,
    config: TrainConfig,
    shards: Shards,
    tokenizer: Tokenizer[Any],
    run: Path,
    device: torch.device,
    report: Report,
    meter: Any,
) -> None:
    assert config.steps is not None
    assert config.checkpoint_every is not None
    special = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id}
    n_positions = state.model.config.n_positions
    train_split, val_split = shards.split("train"), shards.split("val")
    batches = Batches(
        train_split,
        window=tokenizer.window,
        batch_size=config.batch_size,
        n_positions=n_positions,
        seed=config.seed,
        **special,
    )
    if val_split.n_documents == 0:
        raise ShardsError(f"{shards.directory} has nothing to validate on; give more pieces")
    windows = windows_in_order(val_split, n_positions=n_positions, limit=VALIDATION_IDS, **special)
    autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
    if state.step == 0:
        floors = baselines(train_split, windows, tokenizer.vocab_size)
        report("validation without a model: " + ", ".join(f"{name} {loss:.3f}" for name, loss in floors.items()))
        write_json(run / "baselines.json", floors)
    interrupted = False
    with _interrupts() as stop, open(run / "metrics.jsonl", "a", encoding="utf-8") as metrics:
        while state.step < config.steps and not interrupted:
            began = time.perf_counter()
            row = {"step": state.step + 1, **_step(state, batches, config, device, autocast, run)}
            row["tokens_per_second"] = round(config.batch_size * n_positions / (time.perf_counter() - began), 1)
            row["epoch"] = round(batches.epoch(state.step), 4)
            interrupted = bool(stop)
            if state.step % config.checkpoint_every == 0 or state.step == config.steps:
                row["val_loss"] = mean_loss(state.model, windows, autocast)
                if not math.isfinite(row["val_loss"]):  # nothing of this is worth a checkpoint
                    raise _not_finite(f"the validation loss behind step {state.step}", batches, state.step - 1, run)
                best = row["val_loss"] < state.best
                state.best = min(state.best, row["val_loss"])
                _save(state, tokenizer, run, best)
                _write_sample(state, tokenizer, run, config.seed)
            elif interrupted:  # without a validation, which the run would not have made here by itself
                _save(state, tokenizer, run, best=False)
            row["seconds"] = round(time.perf_counter() - began, 3)
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            if meter is not None:
                meter(row, config.steps)
    if interrupted:
        report(f"stopped behind step {state.step:,}, all saved; go on with the same command and --resume")
    else:
        report(f"done: {state.step:,} steps, lowest validation loss {state.best:.4f} in {run / 'best'}")


def _step(
    state: State, batches: Batches, config: TrainConfig, device: torch.device, autocast: torch.dtype | None, run: Path
) -> dict[str, float]:
    """One update of the weights; advances `state.step`."""
    assert config.steps is not None
    assert config.learning_rate is not None
    assert config.micro_batch is not None
    learning_rate = learning_rate_at(state.step, steps=config.steps, peak=config.learning_rate, warmup=config.warmup)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    torch.manual_seed((config.seed << 32) + state.step)
    ids, targets = batches[state.step]
    scored = int((targets != IGNORED).sum())
    total = 0.0
    for i in range(0, config.batch_size, config.micro_batch):
        part = slice(i, i + config.micro_batch)
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            loss = state.model.loss(ids[part].to(device), targets[part].to(device), reduction="sum") / scored
        torch.autograd.backward(loss)
        total += float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip))
    if not math.isfinite(total) or not math.isfinite(norm):
        raise _not_finite(f"the loss of step {state.step + 1} ({total}, gradient {norm})", batches, state.step, run)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return {"loss": total, "learning_rate": learning_rate, "grad_norm": norm}


def _not_finite(what: str, batches: Batches, step: int, run: Path) -> MusicGPTError:
    good = _has_state(run / "last")
    kept = f"the last good checkpoint is {run / 'last'}" if good else "no checkpoint was written yet"
    return MusicGPTError(
        f"{what} is not finite; training documents of the batch: {batches.documents(step)}; {kept}. "
        f"Try a lower --learning-rate, or --dtype float32"
    )


def _save(state: State, tokenizer: Tokenizer[Any], run: Path, best: bool) -> None:
    """Write RUN/last with all that resuming needs and, where it is the best so far, RUN/best."""
    moments = {
        f"{key}/{name}": value.detach().cpu()
        for name, weight in state.model.named_parameters()
        for key, value in state.optimizer.state[weight].items()
    }
    if best:  # first: `last` says how good it is, and must not say so of one that was never written
        with directory_in_place(run / "best") as beside:
            save_model(beside, state.model, tokenizer)
    with directory_in_place(run / "last") as beside:
        save_model(beside, state.model, tokenizer)
        try:
            save_file(moments, beside / "optimizer.safetensors")
        except (OSError, SafetensorError) as error:
            raise InputError(f"cannot write {run / 'last'}: {error}") from error
        write_json(beside / "training_state.json", {"step": state.step, "best": state.best})


def _has_state(directory: Path) -> bool:
    recover(directory)
    return (directory / "training_state.json").is_file()


def _load_state(directory: Path, state: State) -> None:
    values = read_json(directory / "training_state.json")
    try:
        moments = load_file(directory / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{directory / 'optimizer.safetensors'} cannot be read: {error}") from error
    for name, weight in state.model.named_parameters():
        state.optimizer.state[weight] = {
            key: moments[f"{key}/{name}"].to(weight.device if key != "step" else "cpu")
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    state.step, state.best = int(values["step"]), float(values["best"])


def _write_sample(state: State, tokenizer: Tokenizer[Any], run: Path, seed: int) -> None:
    """What the model writes from nothing, to hear or read how far it has come."""
    model = LanguageModel(state.model, tokenizer)
    (run / "samples").mkdir(exist_ok=True)
    with suppress(InputError):  # not one complete note: a model that has learned nothing yet
        piece = model.generate(max_new_tokens=SAMPLE_IDS, seed=seed)
        piece.save(run / "samples" / f"step_{state.step:06d}{tokenizer.suffixes[0]}")
    state.model.train()


def _cut_metrics(run: Path, step: int) -> None:
    """Leave out what a resumed run will write again."""
    run.mkdir(parents=True, exist_ok=True)
    path = run / "metrics.jsonl"
    kept = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                break  # a line that a kill cut short; what follows was never written
    write_bytes(path, "".join(kept).encode())


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that fills when the user (Ctrl-C) or the system asks to stop: the step is finished and saved first."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])  # a second time means now

    try:
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever started it handles signals
        before = {}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
