"""Losses against ones worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from musicgpt.batches import IGNORED
from musicgpt.evaluate import PRIOR, baselines, mean_loss
from musicgpt.model import GPT, GPTConfig
from musicgpt.shards import Shard


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
