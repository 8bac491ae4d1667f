"""Marks of controls learned by comparison: what is altered, what is asked of the model, and that it learns from it."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from test_distributed import TORCHRUN, WORLDS
from torch import Tensor

from musicgpt.cli import main
from musicgpt.config import PrepareConfig
from musicgpt.contrast import Contrast, doubts, segments_in
from musicgpt.marks import CONTROL_MARKS, CONTROLS
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.prepare import prepare

TOKENS = (
    "Position_0 Pitch_60 EOS_None BOS_None Bar_None Position_0 Pitch_60 "  # of no segment: nothing is said of it
    "Key_3 Track_0 Density_2 Register_4 Bar_None Position_0 Pitch_62 BarsLeft_2 Bar_None Position_0 EOS_None "
    "BOS_None Bar_None Track_40 Polyphony_0 Position_0 Pitch_64"
).split()
SEGMENTS = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 2, 2, 2, 0, 0, 0, 0, 3, 3]
SHAPE = "--preset nano --n-positions 256 --batch-size 4 --dtype float32 --device cpu"


@pytest.fixture(scope="module")
def tokenizer() -> MidiTokenizer:
    return MidiTokenizer.new("remi", CONTROL_MARKS)


@pytest.fixture(scope="module")
def shards(folk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("marked") / "shards"
    prepare(folk, out, PrepareConfig(transpositions=2, controls=True), report=lambda text: None)
    return out


def altered(tokenizer: MidiTokenizer, tokens: Sequence[str], seed: int) -> tuple[list[str], Tensor]:
    name_of = {id: name for name, id in tokenizer.wrapped.vocab.items()}
    ids = torch.tensor([[tokenizer.wrapped[token] for token in tokens]])
    others, segments = Contrast(tokenizer).altered(ids, [(seed, 0)])
    return [name_of[id] for id in others[0].tolist()], segments


def test_one_mark_of_each_segment_says_another_level(tokenizer: MidiTokenizer) -> None:
    seen: set[tuple[str, str]] = set()
    for seed in range(400):
        others, segments = altered(tokenizer, TOKENS, seed)
        assert segments[0].tolist() == [*SEGMENTS[1:], 0]  # of the targets, which are one ahead
        assert segments_in(segments) == 3
        changed = {(token, other) for token, other in zip(TOKENS, others, strict=True) if token != other}
        kinds = [token.split("_")[0] for token, _ in changed]
        assert all(other.split("_")[0] == token.split("_")[0] for token, other in changed)
        assert sorted(kinds)[0] == "BarsLeft"
        assert len(kinds) == 3
        assert "Polyphony" in kinds
        seen |= changed
    assert {token for token, _ in seen} == {"Key_3", "Density_2", "Register_4", "BarsLeft_2", "Polyphony_0"}
    assert {other for token, other in seen if token == "Density_2"} == set(CONTROLS["density"]) - {"Density_2"}
    assert {other for token, other in seen if token == "BarsLeft_2"} == set(CONTROLS["bars_left"]) - {"BarsLeft_2"}


def test_what_is_altered_depends_on_the_seed_of_the_row_alone(tokenizer: MidiTokenizer) -> None:
    row = torch.tensor([tokenizer.wrapped[token] for token in TOKENS])
    contrast = Contrast(tokenizer)
    both, _ = contrast.altered(torch.stack([row, row]), [(1, 2), (1, 3)])
    alone, _ = contrast.altered(row[None], [(1, 3)])
    assert torch.equal(both[1], alone[0])
    assert not torch.equal(both[0], both[1])


def test_without_marks_nothing_is_altered_and_nothing_is_doubted(tokenizer: MidiTokenizer) -> None:
    others, segments = altered(tokenizer, TOKENS[:7], 0)
    assert others == TOKENS[:7]
    assert segments_in(segments) == 0
    assert doubts(torch.ones(segments.shape), torch.zeros(segments.shape), segments) == 0


def test_doubts_are_those_of_the_likelihoods_of_whole_segments() -> None:
    segments = torch.tensor([[0, 1, 1, 0, 2], [1, 1, 1, 1, 1]])
    nats = torch.tensor([[9.0, 1.0, 2.0, 9.0, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    others = torch.tensor([[0.0, 2.0, 4.0, 0.0, 2.5], [1.0, 2.0, 0.0, 1.0, 1.0]])
    expected = [math.log1p(math.exp(-margin)) for margin in (3.0, -0.5, 0.0)]
    assert float(doubts(nats, others, segments)) == pytest.approx(sum(expected), rel=1e-6)


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def doubt(run: Path) -> list[float]:
    return [row["control_loss"] for row in rows(run) if "control_loss" in row]


def test_a_model_learns_by_it_what_the_marks_say(shards: Path, tmp_path: Path) -> None:
    for weight in (0.001, 1):
        command = f"train {shards} --out {tmp_path / str(weight)} {SHAPE} --steps 300 --dropout 0"
        main([*command.split(), "--control-weight", str(weight)])
    hardly, fully = (doubt(tmp_path / str(weight)) for weight in (0.001, 1))
    assert [row["step"] for row in rows(tmp_path / "1") if "control_loss" in row] == list(range(1, 301, 4))
    assert hardly[0] == fully[0] == pytest.approx(math.log(2), abs=0.15)
    assert np.mean(fully[-15:]) < 0.5 < np.mean(hardly[-15:])


def test_without_weight_there_is_no_comparison(shards: Path, tmp_path: Path) -> None:
    main(f"train {shards} --out {tmp_path / 'run'} {SHAPE} --steps 2 --control-weight 0".split())
    assert doubt(tmp_path / "run") == []


def test_micro_batches_and_processes_change_nothing_of_it(shards: Path, tmp_path: Path) -> None:
    command = f"train {shards} {SHAPE} --steps 9 --dropout 0 --optimizer adamw --control-weight 1"
    main([*command.split(), "--out", str(tmp_path / "one")])
    main([*command.split(), "--out", str(tmp_path / "parts"), "--micro-batch", "1"])
    for world in ("ddp", "fsdp"):
        arguments = [*command.split(), "--out", str(tmp_path / world), *WORLDS[world].split()]
        done = subprocess.run([*TORCHRUN, "-m", "musicgpt", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for other in ("parts", "ddp", "fsdp"):
        for key in ("loss", "control_loss"):
            one, parted = ([row[key] for row in rows(tmp_path / name) if key in row] for name in ("one", other))
            np.testing.assert_allclose(parted, one, rtol=1e-4)
