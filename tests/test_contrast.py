"""Marks of controls learned by comparison: what is altered, what is asked of the model, and that it learns from it."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from symusic.core import ScoreTick
from test_distributed import TORCHRUN, WORLDS

from musicgpt.cli import main
from musicgpt.config import PrepareConfig
from musicgpt.contrast import Contrast
from musicgpt.distributed import Objective, discriminative_loss
from musicgpt.errors import TokenizerError
from musicgpt.marks import CONTROL_MARKS, CONTROLS, FILL
from musicgpt.midi_tokenizer import SCHEMES, MidiTokenizer
from musicgpt.model import GPT, GPTConfig
from musicgpt.prepare import prepare
from musicgpt.tokenizer import new_tokenizer

TOKENS = (
    "Position_0 Pitch_60 EOS_None BOS_None Bar_None Position_0 Pitch_60 "  # of no segment: nothing is said of it
    "Key_3 Track_0 Density_2 Register_4 Bar_None Position_0 Pitch_62 BarsLeft_2 Bar_None Position_0 EOS_None "
    "BOS_None Fill_Suffix Bar_None Fill_Prefix Bar_None Fill_Middle FillBars_1 Track_40 Track_41 Bar_None "  # unsaid
    "Track_40 Polyphony_1 Position_0 Pitch_64"
).split()
SEGMENTS = [0] * 11 + [1] * 3 + [0] + [2] * 3 + [0] * 12 + [3] * 2
THERE = {"polyphony": [1, 3]}
SHAPE = "--preset nano --n-positions 256 --batch-size 4 --dtype float32 --device cpu --control-weight 1"


@pytest.fixture(scope="module")
def tokenizer() -> MidiTokenizer:
    return MidiTokenizer.new("remi", (*FILL, *CONTROL_MARKS))


@pytest.fixture(scope="module")
def contrast(tokenizer: MidiTokenizer) -> Contrast:
    marks = {name: tokenizer.mark(name) for name in CONTROL_MARKS}
    return Contrast(marks, tokenizer.bos_id, tokenizer.vocab_size, lambda rank, control: THERE.get(control, range(5)))


@pytest.fixture(scope="module")
def shards(folk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("marked") / "shards"
    prepare(
        folk, out, PrepareConfig(transpositions=2, controls=True, infill=0.5, infill_ids=256), report=lambda text: None
    )
    return out


def altered(
    contrast: Contrast, tokenizer: MidiTokenizer, tokens: Sequence[str], seed: int
) -> tuple[list[str], list[int]]:
    name_of = {id: name for name, id in tokenizer.wrapped.vocab.items()}
    ids = np.array([tokenizer.wrapped[token] for token in tokens])
    made, segments = contrast(ids, np.random.default_rng(seed))
    return [name_of[id] for id in made.tolist()], segments.tolist()


def test_one_mark_of_each_segment_says_another_level(contrast: Contrast, tokenizer: MidiTokenizer) -> None:
    seen: set[tuple[str, str]] = set()
    for seed in range(400):
        made, segments = altered(contrast, tokenizer, TOKENS, seed)
        assert segments == SEGMENTS
        changed = {(token, other) for token, other in zip(TOKENS, made, strict=True) if token != other}
        assert all(other.split("_")[0] == token.split("_")[0] for token, other in changed)
        kinds = {token.split("_")[0] for token, _ in changed}
        assert len(changed) == 3
        assert {"BarsLeft", "Polyphony"} < kinds
        seen |= changed
    assert {token for token, _ in seen} == {"Key_3", "Density_2", "Register_4", "BarsLeft_2", "Polyphony_1"}
    for token, control in (("Density_2", "density"), ("BarsLeft_2", "bars_left"), ("Key_3", "key")):
        assert {other for one, other in seen if one == token} == set(CONTROLS[control]) - {token}
    assert {other for one, other in seen if one == "Polyphony_1"} == {"Polyphony_3"}  # no other was in training


def test_without_marks_nothing_is_altered(contrast: Contrast, tokenizer: MidiTokenizer) -> None:
    assert altered(contrast, tokenizer, TOKENS[:7], 0) == (TOKENS[:7], [0] * 7)
    segments = torch.zeros(2, 5, dtype=torch.int64)
    assert discriminative_loss(torch.ones(2, 5), torch.zeros(2, 5), segments) == 0


@pytest.mark.parametrize("scheme", [scheme + learned for scheme in SCHEMES for learned in ("", "+bpe")])
def test_of_marked_music_every_segment_is_altered_in_one_mark(scheme: str, tunes: list[ScoreTick]) -> None:
    made = MidiTokenizer.new(scheme.removesuffix("+bpe"), CONTROL_MARKS)
    made.learn(tunes[:60], made.vocab_size + 300 if scheme.endswith("+bpe") else None)
    says = {made.mark(name): control for control, names in CONTROLS.items() for name in names}
    found = 0
    for tune in tunes[:40]:
        ids = np.array(made.marked(tune, made.encode(tune)))
        others, segments = made.altered(ids, np.random.default_rng(0))
        changed = np.flatnonzero(ids != others)
        assert len(changed) == segments.max()
        assert [says[id] for id in ids[changed]] == [says[id] for id in others[changed]]
        assert sorted(set(segments.tolist())) == list(range(segments.max() + 1))
        found += len(changed)
    assert found > 50
    with pytest.raises(TokenizerError, match="has not learned what its controls mean"):
        MidiTokenizer.new("remi", CONTROL_MARKS).altered(ids, np.random.default_rng(0))


def test_the_loss_is_of_the_likelihoods_of_whole_segments() -> None:
    segments = torch.tensor([[0, 1, 1, 0, 2], [1, 1, 1, 1, 1]])
    nats = torch.tensor([[9.0, 1.0, 2.0, 9.0, 3.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    altered_nats = torch.tensor([[0.0, 2.0, 4.0, 0.0, 2.5], [1.0, 2.0, 0.0, 1.0, 1.0]])
    expected = [math.log1p(math.exp(-margin)) for margin in (3.0, -0.5, 0.0)]
    assert float(discriminative_loss(nats, altered_nats, segments)) == pytest.approx(sum(expected), rel=1e-6)


def test_both_readings_of_a_batch_have_the_same_dropout() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=50, n_positions=32, n_layer=2, n_head=2, n_embd=32, embd_pdrop=0.3)).train()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    ids = torch.randint(50, (3, 32))
    segments = torch.ones_like(ids)
    _, same = Objective(model)(ids, ids, ids, segments)
    _, other = Objective(model)(ids, ids, (ids + 1) % 50, segments)
    assert float(same.detach()) == pytest.approx(3 * math.log(2), rel=1e-5)
    assert abs(float(other.detach()) - 3 * math.log(2)) > 0.1


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def of(run: Path, key: str = "control_loss") -> list[float]:
    return [row[key] for row in rows(run) if key in row]


def test_a_model_learns_by_it_what_the_marks_say(shards: Path, tmp_path: Path) -> None:
    main(f"train {shards} --out {tmp_path / 'run'} {SHAPE} --steps 260 --dropout 0".split())
    assert [row["step"] for row in rows(tmp_path / "run") if "control_loss" in row] == list(range(1, 261, 2))
    losses = of(tmp_path / "run")
    assert losses[0] == pytest.approx(math.log(2), abs=0.15)
    assert np.median(losses[-30:]) < 0.45  # by chance 0.69; a few are far off, so not their mean


def test_without_weight_nothing_is_compared(shards: Path, tmp_path: Path) -> None:
    main(f"train {shards} --out {tmp_path / 'run'} {SHAPE} --steps 2 --control-weight 0".split())
    assert of(tmp_path / "run") == []


def test_a_weight_for_marks_there_are_not_is_refused(
    folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a corpus before it is prepared, and of shards."""
    main(f"prepare {folk} --out {tmp_path / 'plain'} --transpositions 1".split())
    capsys.readouterr()
    for corpus in (folk, tmp_path / "plain"):
        with pytest.raises(SystemExit):
            main(f"train {corpus} --out {tmp_path / 'run'} {SHAPE}".split())
        said = capsys.readouterr().err
        assert f"--control-weight 1.0: {corpus} has no marks of controls; leave it out, or" in said
        assert "files" not in said
        assert not (tmp_path / "run").exists()


def test_a_run_that_recorded_a_weight_without_marks_goes_on(folk: Path, tmp_path: Path) -> None:
    """A version that was never published wrote 1.0 into every run."""
    run = tmp_path / "run"
    shape = SHAPE.replace(" --control-weight 1", "")
    main(f"train {folk} --out {run} {shape} --transpositions 1 --steps 2".split())
    record = json.loads((run / "run.json").read_text())
    record["train"]["control_weight"] = 1.0
    (run / "run.json").write_text(json.dumps(record))
    main(f"train {folk} --out {run} --steps 4 --resume".split())
    assert len(rows(run)) == 4
    assert of(run) == []


def test_micro_batches_and_processes_change_nothing_of_it(shards: Path, tmp_path: Path) -> None:
    command = f"train {shards} {SHAPE} --steps 5 --dropout 0 --optimizer adamw"
    main([*command.split(), "--out", str(tmp_path / "one")])
    main([*command.split(), "--out", str(tmp_path / "parts"), "--micro-batch", "1"])
    for world in ("ddp", "fsdp"):
        arguments = [*command.split(), "--out", str(tmp_path / world), *WORLDS[world].split()]
        done = subprocess.run([*TORCHRUN, "-m", "musicgpt", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for other in ("parts", "ddp", "fsdp"):
        for key in ("loss", "control_loss", "grad_norm"):
            np.testing.assert_allclose(of(tmp_path / other, key), of(tmp_path / "one", key), rtol=1e-4)


def test_it_goes_on_as_if_it_had_not_been_stopped(shards: Path, tmp_path: Path) -> None:
    command = f"train {shards} {SHAPE} --checkpoint-every 3 --steps".split()
    main([*command, "6", "--out", str(tmp_path / "whole")])
    main([*command, "6", "--out", str(tmp_path / "parts")])
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "000006")
    main([*command, "6", "--out", str(tmp_path / "parts"), "--resume"])
    assert of(tmp_path / "parts") == of(tmp_path / "whole")
    assert of(tmp_path / "parts", "loss") == of(tmp_path / "whole", "loss")


def test_text_has_no_marks() -> None:
    with pytest.raises(TokenizerError, match="a tokenizer of text has no marks"):
        new_tokenizer("bytes").altered(np.zeros(3), np.random.default_rng(0))
    assert new_tokenizer("grid").altered(np.arange(4), np.random.default_rng(0))[1].tolist() == [0, 0, 0, 0]
