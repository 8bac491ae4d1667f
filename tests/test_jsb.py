"""The benchmark on JSB chorales: its number against transformers' own, id by id, and its shards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from musicgpt.batches import Batches
from musicgpt.checkpoint import load_model, save_model
from musicgpt.grid_tokenizer import IDS_PER_BAR, VOICES, GridTokenizer
from musicgpt.model import GPT, GPTConfig
from musicgpt.shards import Shards

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import jsb

TOKENIZER = GridTokenizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Splits of other names and lengths than those of the real file."""
    chance = np.random.default_rng(1)
    splits = {
        name: [chance.integers(55, 70, (steps, len(VOICES))).tolist() for steps in lengths]
        for name, lengths in {"learn": (17, 40, 100), "check": (33,), "some": (3, 16, 31, 32, 33, 60)}.items()
    }
    splits["some"][0][1] = [-1, 90, 30, 60]  # outside the range of the set
    path = tmp_path_factory.mktemp("jsb") / "chorales.json"
    path.write_text(json.dumps(splits))
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two bars of context, without a tokenizer beside it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPTConfig(vocab_size=TOKENIZER.vocab_size, n_positions=2 * IDS_PER_BAR, n_embd=16, n_layer=1, n_head=2)
    model = GPT(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # far from the same for all ids
    save_model(folder, model)
    return folder


def test_the_loss_is_that_of_each_voice_step_by_itself(data: Path, checkpoint: Path) -> None:
    theirs = transformers.GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    losses = []
    for chorale in json.loads(data.read_text())["some"]:
        ids = [TOKENIZER.bos_id, *TOKENIZER.ids(np.array(chorale))]
        for i in range(1, len(ids)):
            bars = max(0, -(-(i - 2 * IDS_PER_BAR) // IDS_PER_BAR))  # by which the window has gone on
            with torch.no_grad():
                logits = theirs(torch.tensor([ids[bars * IDS_PER_BAR : i]])).logits[0, -1]
            losses.append(float(-logits.log_softmax(-1)[ids[i]]))
    found = jsb.evaluate(str(checkpoint), data, "some", stride=IDS_PER_BAR)
    assert found["voice_steps"] == len(losses)
    assert found["nats_per_voice_step"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_lengthened_model_is_the_same_within_its_old_context(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    jsb.lengthen(str(checkpoint), 5 * IDS_PER_BAR, tmp_path)
    short, long = load_model(checkpoint), load_model(tmp_path)
    ids = torch.tensor([TOKENIZER.ids(jsb.chorales(data, "check")[0])])[:, : 2 * IDS_PER_BAR]
    assert long.config.n_positions == 5 * IDS_PER_BAR
    assert torch.equal(short(ids), long(ids))
    assert not torch.equal(
        short(ids), long(torch.cat((ids, ids), 1))[:, ids.shape[1] :]
    )  # the second time it knows more


def test_the_command_prints_the_two_keys(data: Path, checkpoint: Path) -> None:
    command = [sys.executable, jsb.__file__, "evaluate", checkpoint, "--data", data, "--split", "check", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout).keys() == {"nats_per_voice_step", "voice_steps"}
    done = subprocess.run([*command[:-2], "valid"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no split 'valid'; expected one of learn, check, some" in done.stderr


def test_the_command_trains(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = "--preset nano --n-positions 64 --batch-size 2 --steps 2 --dtype float32 --device cpu".split()
    jsb.train(data, run, {"train": "learn", "val": "check"}, flags)
    assert np.isfinite(jsb.evaluate(str(run), data, "check", stride=IDS_PER_BAR)["nats_per_voice_step"])


def test_every_training_window_begins_at_a_bar_line(data: Path, tmp_path: Path) -> None:
    jsb.write_shards(
        tmp_path, {name: jsb.chorales(data, split) for name, split in (("train", "learn"), ("val", "check"))}
    )
    shards = Shards(tmp_path)
    batches = Batches(
        shards.split("train"),
        window=TOKENIZER.window,
        batch_size=2,
        n_positions=2 * IDS_PER_BAR,
        seed=3,
        unscored=TOKENIZER.unscored,
        eos_id=TOKENIZER.eos_id,
    )
    for step in range(12):
        ids, _ = batches[step]
        begins = (ids == TOKENIZER.bos_id).nonzero()[:, 1]
        assert not (begins % IDS_PER_BAR).any()
    train = shards.split("train")
    for document, grid in enumerate(jsb.chorales(data, "learn")):
        sequences = [train.sequence(i) for i in range(*train.documents[document : document + 2])]
        assert (TOKENIZER.grid(sequences[0].tolist()) == grid).all()
        moved = [int((TOKENIZER.grid(sequence.tolist()) - grid).mean()) for sequence in sequences]
        assert sorted(moved) == list(TOKENIZER.shifts(grid))
