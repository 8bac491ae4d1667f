"""Losses against ones worked out by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from musicgpt.batches import IGNORED
from musicgpt.checkpoint import load
from musicgpt.cli import main
from musicgpt.errors import ShardsError
from musicgpt.evaluate import PRIOR, baselines, copy_baseline, evaluate, mean_loss, windows_of
from musicgpt.model import GPT, GPTConfig
from musicgpt.shards import Shard, Shards


def test_baselines_are_their_formulas() -> None:
    stream = np.array([3, 4, 3, 4, 3, 5, 4, 3], dtype="<u2")
    train = Shard(stream, np.array([0, 8]), np.array([0, 1]))
    windows = [(torch.tensor([[3, 4, 5]]), torch.tensor([[4, IGNORED, 7]]))]
    unigram_4, unigram_7 = (3 + 1) / (8 + 10), (0 + 1) / (8 + 10)
    bigram_34 = (2 + PRIOR * unigram_4) / (4 + PRIOR)
    bigram_57 = (0 + PRIOR * unigram_7) / (1 + PRIOR)
    found = baselines(train, windows, vocab_size=10)
    assert found["unigram"] == pytest.approx(-(math.log(unigram_4) + math.log(unigram_7)) / 2)
    assert found["bigram"] == pytest.approx(-(math.log(bigram_34) + math.log(bigram_57)) / 2)


def test_a_chain_is_known_to_the_bigram_and_not_to_the_unigram() -> None:
    stream = np.tile(np.arange(3, 13, dtype="<u2"), 300_000)  # longer than what is counted at once
    train = Shard(stream, np.array([0, len(stream)]), np.array([0, 1]))
    ids = torch.arange(3, 13).repeat(50)[None]
    found = baselines(train, [(ids[:, :-1], ids[:, 1:])], vocab_size=20)
    assert found["unigram"] == pytest.approx(math.log(10), abs=1e-3)
    assert found["bigram"] < 0.001


def test_the_mean_is_over_targets_not_over_windows() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=40, n_positions=16, n_embd=32, n_layer=1, n_head=2))
    long, short = torch.randint(0, 40, (1, 17)), torch.randint(0, 40, (1, 4))
    windows = [(long[:, :-1], long[:, 1:]), (short[:, :-1], short[:, 1:])]
    was = model.training
    loss = mean_loss(model, windows)
    model.eval()
    with torch.inference_mode():
        parts = [float(model.loss(ids, targets)) * targets.numel() for ids, targets in windows]
    assert loss == pytest.approx(sum(parts) / 19, rel=1e-5)
    assert was


@pytest.mark.parametrize("stride", [1, 3, 8, 16])
@pytest.mark.parametrize("length", [2, 16, 17, 18, 100])
def test_every_id_but_the_first_is_scored_once_with_context(length: int, stride: int) -> None:
    document = np.arange(length)
    scored = []
    for ids, targets in windows_of([document], 16, stride):
        assert ids.shape == targets.shape
        assert ids.shape[1] <= 16
        kept = targets != IGNORED
        assert (targets[kept] == ids[kept] + 1).all()
        before = kept[0].nonzero()[0].item() + 1  # ids of context for the first target
        assert before >= min(16 - stride + 1, int(targets[kept][0]))
        scored += targets[kept].tolist()
    assert scored == list(range(1, length))


def test_the_loss_of_a_run_is_what_plain_arithmetic_gives(run: Path) -> None:
    found = evaluate(run, run / "shards", report=print)
    model, tokenizer = load(run)
    shards = Shards(run / "shards")
    shard = shards.split("val")
    total, count = 0.0, 0
    with torch.inference_mode():
        for i in range(shard.n_documents):
            ids = shard.sequence(i).astype(np.int64).tolist()
            for position in range(1, len(ids)):  # each id with a window of its own, cut where ours are
                end = position + 1 if position <= 128 else position + 1 + (-(position - 128)) % 64
                start = max(0, min(end, len(ids)) - 1 - 128) if position > 128 else 0
                logits = model(torch.tensor([ids[start:position]]))[0, -1]
                total -= float(logits.log_softmax(-1)[ids[position]])
                count += 1
            if count > 600:
                break
    few = [shard.sequence(i).astype(np.int64) for i in range(i + 1)]
    assert mean_loss(model, list(windows_of(few, 128, 64))) == pytest.approx(total / count, rel=1e-4)
    said = shards.manifest["splits"]["val"]
    assert found["tokens"] == said["ids"] - said["documents"]
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    nats = found["loss"] * found["tokens"]
    assert found["bits_per_note"] == pytest.approx(nats / math.log(2) / said["notes"])
    assert found["bits_per_second"] == pytest.approx(nats / math.log(2) / said["seconds"])
    assert set(found["baselines"]) == {"unigram", "bigram", "copy", "back_off"}
    assert found["back_off"]["bits_per_note"] == pytest.approx(
        found["bits_per_note"] * found["baselines"]["back_off"] / found["loss"]
    )
    assert found["by_folder"] == {}
    assert tokenizer.units == ("notes", "seconds")


def test_copying_is_good_where_all_repeats_and_useless_where_nothing_does() -> None:
    random = np.random.default_rng(0)
    repeats, noise = np.tile(random.integers(3, 100, 50), 40), random.integers(3, 100, 2000)
    for stream, low, high in ((repeats, 0.0, 0.2), (noise, 4.4, 5.0)):
        train = Shard(stream.astype("<u2"), np.array([0, len(stream)]), np.array([0, 1]))
        assert low < copy_baseline(train, [stream], 100) < high


def test_folders_of_the_first_level_are_scored_apart_and_add_up(
    run: Path, folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    for i, path in enumerate(sorted(folk.iterdir())[:18]):
        folder = corpus / ("reels", "old_jigs/deep", ".")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    main(f"prepare {corpus} --out {tmp_path / 'shards'} --tokenizer {run} --transpositions 1".split())
    shards = Shards(tmp_path / "shards")
    lines = [json.loads(line) for line in (tmp_path / "shards" / "ledger.jsonl").read_text().splitlines()]
    for split, said in shards.manifest["splits"].items():
        parts = [document[split] for line in lines for document in line["splits"] if split in document]
        assert len(parts) == said["documents"]
        for key in ("notes", "seconds"):
            assert sum(part[key] for part in parts) == pytest.approx(said[key], abs=0.1)

    found = evaluate(run, tmp_path / "shards", split="train", stride=128, report=print)
    folders = found["by_folder"]
    assert set(folders) == {".", "old_jigs", "reels"}
    for key in ("documents", "tokens"):
        assert sum(part[key] for part in folders.values()) == found[key]
    for one in (lambda part: part, lambda part: part["back_off"]):
        nats = sum(one(part)["loss"] * part["tokens"] for part in folders.values())
        assert nats / found["tokens"] == pytest.approx(one(found)["loss"])
        notes = sum(part["loss"] * part["tokens"] / math.log(2) / part["bits_per_note"] for part in folders.values())
        assert notes == pytest.approx(shards.manifest["splits"]["train"]["notes"])

    # the same documents by themselves
    (tmp_path / "reels").mkdir()
    for line in lines:
        if line["path"].startswith("reels/") and line["splits"] and "train" in line["splits"][0]:
            shutil.copy(corpus / line["path"], tmp_path / "reels")
    main(f"prepare {tmp_path / 'reels'} --out {tmp_path / 'alone'} --tokenizer {run} --transpositions 1".split())
    alone = [evaluate(run, tmp_path / "alone", split=split, stride=128, report=print) for split in ("train", "val")]
    assert sum(part["documents"] for part in alone) == folders["reels"]["documents"]
    nats = sum(part["loss"] * part["tokens"] for part in alone)
    assert nats == pytest.approx(folders["reels"]["loss"] * folders["reels"]["tokens"], rel=1e-4)

    capsys.readouterr()
    main(f"evaluate {run} {tmp_path / 'shards'} --stride 128".split())
    table = capsys.readouterr().out.splitlines()
    assert next(line.split()[0] for line in table if line.startswith("  ")) == "all"
    (tmp_path / "shards" / "ledger.jsonl").unlink()
    assert evaluate(run, tmp_path / "shards", stride=128, report=print)["by_folder"] == {}


def test_evaluate_on_files_and_as_json(
    run: Path, folk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted(folk.iterdir())[:5]:
        shutil.copy(path, few)
    main(f"evaluate {run} {few} --json".split())
    found = json.loads(capsys.readouterr().out)
    keys = {"loss", "perplexity", "bits_per_note", "bits_per_second", "bits_per_byte", "tokens", "baselines"}
    assert keys <= set(found)
    assert found["bits_per_byte"] is None
    main(f"evaluate {run} {run / 'shards'} --split test".split())
    said = capsys.readouterr().out
    assert "loss (nats per token)" in said
    assert "bits per note compare only at equal grid" in said


def test_shards_of_another_tokenizer_and_an_empty_split_are_refused(run: Path, folk: Path, tmp_path: Path) -> None:
    main(f"prepare {folk} --out {tmp_path / 'tsd'} --tokenizer tsd --transpositions 1".split())
    with pytest.raises(ShardsError, match="was prepared with another tokenizer"):
        evaluate(run, tmp_path / "tsd", report=print)
    (tmp_path / "one").mkdir()
    shutil.copy(folk / "000.mid", tmp_path / "one")
    with pytest.raises(ShardsError, match=r"the split test of .* is empty"):
        evaluate(run, tmp_path / "one", split="test", report=print)
