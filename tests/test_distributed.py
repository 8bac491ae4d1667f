"""Several processes that train one model, as torchrun starts them: the gloo backend on this machine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import symusic
import torch
from safetensors.torch import load_file

import musicgpt
from musicgpt import cpu_ops
from musicgpt.cli import main
from musicgpt.config import PrepareConfig
from musicgpt.distributed import memory, recompute
from musicgpt.model import GPT, PRESETS, GPTConfig
from musicgpt.optim import make_optimizers
from musicgpt.prepare import prepare
from musicgpt.runs import checkpoints
from musicgpt.train import SAMPLE_IDS

SMALL = "--preset nano --n-positions 64 --batch-size 4 --steps 6 --checkpoint-every 3 --device cpu --dtype float32"
WORLDS = {"one": "", "ddp": "--parallel ddp", "fsdp": "--parallel fsdp"}
TOLERANCE = {"adamw": 1e-4, "muon": 2e-3}
"""Of losses, relative: Muon rounds to bfloat16, so gradients that differ in their last bit may part by a 256th."""

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def shards(folk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "shards"
    prepare(folk, out, PrepareConfig(transpositions=3), report=lambda text: None)
    return out


@pytest.fixture(scope="module")
def runs(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training without dropout, with either optimizer, by one process and by two in either way."""
    folder = tmp_path_factory.mktemp("worlds")
    for optimizer in TOLERANCE:
        for name in WORLDS:
            trained(
                f"train {shards} --out {folder / optimizer / name} {SMALL} --dropout 0 --optimizer {optimizer}", name
            )
    return folder


def trained(command: str, world: str, *extra: str) -> None:
    arguments = [*command.split(), *WORLDS[world].split(), *extra]
    if world == "one":
        return main(arguments)
    done = subprocess.run([*TORCHRUN, "-m", "musicgpt", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return None


def losses(run: Path, key: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


@pytest.mark.parametrize("optimizer", TOLERANCE)
@pytest.mark.parametrize("world", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_of_one(world: str, optimizer: str, runs: Path) -> None:
    one, other = runs / optimizer / "one", runs / optimizer / world
    for key in ("loss", "val_loss"):
        np.testing.assert_allclose(losses(other, key), losses(one, key), rtol=TOLERANCE[optimizer])
    ours, theirs = (load_file(checkpoints(run)[0] / "model.safetensors") for run in (one, other))
    assert {name: weight.shape for name, weight in ours.items()} == {n: w.shape for n, w in theirs.items()}
    if optimizer == "adamw":
        np.testing.assert_allclose(losses(other, "grad_norm"), losses(one, "grad_norm"), rtol=1e-4)
        assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4


@pytest.mark.parametrize("world", WORLDS)
def test_each_validation_leaves_a_sample_whoever_holds_the_weights(world: str, runs: Path) -> None:
    run = runs / "adamw" / world
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step_000003.mid", "step_000006.mid"]
    again = musicgpt.load(checkpoints(run)[0]).generate(max_new_tokens=SAMPLE_IDS, seed=0).document
    sample = symusic.Score(run / "samples" / "step_000006.mid")
    assert [track.note_num() for track in sample.tracks] == [track.note_num() for track in again.tracks]


@pytest.mark.parametrize(("before", "after"), [("one", "fsdp"), ("fsdp", "ddp"), ("ddp", "one")])
def test_a_checkpoint_of_any_number_of_processes_resumes_on_any_other(
    before: str, after: str, runs: Path, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "muon" / before, run)
    shutil.rmtree(run / "checkpoints" / "000006")
    trained(f"train {shards} --out {run} --resume", after)
    assert losses(run)[:3] == losses(runs / "muon" / before)[:3]
    np.testing.assert_allclose(losses(run), losses(runs / "muon" / "one"), rtol=TOLERANCE["muon"])


def test_a_killed_process_comes_back_and_the_run_goes_on_bit_for_bit(shards: Path, tmp_path: Path) -> None:
    command = f"train {shards} --out {tmp_path / 'whole'} {SMALL} --steps 40 --checkpoint-every 5 --parallel fsdp"
    trained(command, "fsdp")
    command = command.replace(str(tmp_path / "whole"), str(tmp_path / "killed"))
    parent = subprocess.Popen(
        [*TORCHRUN, "--max-restarts", "1", "-m", "musicgpt", *command.split()], stderr=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 8):
        time.sleep(0.01)
        assert parent.poll() is None, parent.communicate()[1]
    ranks = [child for child in psutil.Process(parent.pid).children() if "musicgpt" in " ".join(child.cmdline())]
    assert len(ranks) == 2
    os.kill(ranks[1].pid, signal.SIGKILL)
    _, said = parent.communicate(timeout=240)
    assert parent.returncode == 0, said
    assert "resuming" in said
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    one, other = (
        load_file(tmp_path / name / "checkpoints" / "000040" / "model.safetensors") for name in ("whole", "killed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_asked_to_stop_all_save_behind_the_same_step(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = f"train {shards} --out {run} {SMALL} --steps 5000 --checkpoint-every 5000".split()
    parent = subprocess.Popen([*TORCHRUN, "-m", "musicgpt", *command], stderr=subprocess.PIPE, text=True)
    while not (run / "metrics.jsonl").is_file() or not losses(run):
        time.sleep(0.01)
        assert parent.poll() is None, parent.communicate()[1]
    parent.terminate()
    _, said = parent.communicate(timeout=120)
    assert "all saved; go on with the same command and --resume" in said
    assert [int(path.name) for path in checkpoints(run)] == [len(losses(run))]


def test_what_is_wrong_is_said_once(shards: Path, tmp_path: Path) -> None:
    command = f"train {shards} --out {tmp_path / 'run'} {SMALL} --batch-size 3 --parallel ddp".split()
    done = subprocess.run([*TORCHRUN, "-m", "musicgpt", *command], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.count("musicgpt: error:") == 1
    assert "--batch-size 3 cannot be cut into equal micro-batches for 2 processes" in done.stderr
    with pytest.raises(SystemExit):
        main(f"train {shards} --out {tmp_path / 'alone'} {SMALL} --parallel fsdp".split())


def moments_of(model: GPT, optimizer: str) -> int:
    """Bytes that the optimizers hold behind a step."""
    optimizers = make_optimizers(model, optimizer, learning_rate=1e-3, weight_decay=0.1)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    for one in optimizers:
        one.step()
        one.zero_grad()
    states = [state for one in optimizers for state in one.state.values()]
    return sum(value.nbytes for state in states for value in state.values() if value.ndim)


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_memory_of_activations_is_what_autograd_keeps(
    recomputed: bool, dropout: float, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks to the byte, as the difference between two depths; one block's worth more where it is recomputed."""
    monkeypatch.setattr(cpu_ops, "MKL_IS_SLOW", False)
    monkeypatch.setattr(cpu_ops, "AMX", True)
    found, worked_out = [], []
    for n_layer in (2, 5):
        config = GPTConfig(
            vocab_size=300, n_positions=320, n_embd=48, n_head=3, n_layer=n_layer,
            embd_pdrop=dropout, resid_pdrop=dropout, attn_pdrop=0.0,
        )  # fmt: skip
        model = GPT(config)
        if recomputed:
            recompute(model)
        own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept: dict[int, tuple[int, torch.Tensor]] = {}

        def keep(tensor: torch.Tensor, own: set[int] = own, kept: dict[int, Any] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that its address stays taken
            return tensor

        ids = torch.randint(0, 300, (2, 320))
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
        ):
            model.loss(ids, ids)
        found.append(sum(size for size, _ in kept.values()))
        need = memory(config, micro_batch=2, recomputed=recomputed, bfloat16=bfloat16)
        worked_out.append(need.activations)
        assert need.weights == need.gradients == 4 * config.n_parameters
        for optimizer in ("adamw", "muon"):
            assert memory(config, optimizer=optimizer).moments == moments_of(model, optimizer)
    assert found[1] - found[0] == worked_out[1] - worked_out[0]


def test_memory_falls_with_the_devices_that_share_it() -> None:
    config = GPTConfig(vocab_size=50_257, **PRESETS["gpt2-xl"])
    needs = [memory(config, devices=n, recomputed=True, optimizer="adamw") for n in (1, 2, 8, 64)]
    assert [need.moments for need in needs] == [8 * -(-config.n_parameters // n) for n in (1, 2, 8, 64)]
    assert all(one.total > other.total for one, other in pairwise(needs))
    assert memory(config, devices=8, parallel="ddp") == memory(config)
