"""Groups and schedule."""

from __future__ import annotations

import pytest

from musicgpt.model import GPT, GPTConfig
from musicgpt.optim import default_learning_rate, learning_rate_at, make_optimizer


def test_matrices_decay_and_vectors_do_not() -> None:
    model = GPT(GPTConfig(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2))
    decayed, others = make_optimizer(model, learning_rate=1e-3, weight_decay=0.1).param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert all(weight.ndim == 2 for weight in decayed["params"])
    assert all(weight.ndim == 1 for weight in others["params"])
    assert sum(w.numel() for g in (decayed, others) for w in g["params"]) == model.config.n_parameters


def test_the_rate_rises_falls_along_a_cosine_and_ends_at_a_tenth() -> None:
    rates = [learning_rate_at(step, steps=1000, peak=1.0, warmup=0.1) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[99] == rates[100] == 1.0
    assert rates[550] == pytest.approx(0.55, abs=1e-3)
    assert rates[1000] == pytest.approx(0.1)
    assert rates[:100] == sorted(rates[:100])
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert learning_rate_at(0, steps=1, peak=1.0, warmup=0.0) == 1.0


def test_the_default_rate_falls_with_the_width() -> None:
    assert default_learning_rate(256) == default_learning_rate(512) == 1e-3
    assert default_learning_rate(1024) == pytest.approx(5e-4)
