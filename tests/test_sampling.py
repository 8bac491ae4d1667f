"""Logits to ids: exactly k, the right distribution, the same numbers again."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from musicgpt.sampling import SamplingConfig, sample, uniform

LOGITS = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, 1.5]])


def draw(config: SamplingConfig, n: int = 20_000, logits: torch.Tensor = LOGITS) -> np.ndarray:
    numbers = torch.from_numpy(np.random.default_rng(5).random(n))
    ids = sample(logits.expand(n, -1), config, numbers)
    return np.bincount(ids.numpy(), minlength=logits.shape[1])


def assert_distributed(counts: np.ndarray, expected: np.ndarray) -> None:
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    assert counts[kept].sum() == counts.sum()
    if kept.sum() > 1:
        assert scipy.stats.chisquare(counts[kept], expected[kept] / expected.sum() * counts.sum()).pvalue > 0.001


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("k", [1, 3, 8, 40, None])
def test_top_k_and_temperature_against_the_known_distribution(k: int | None, temperature: float) -> None:
    p = torch.softmax(LOGITS[0].double() / temperature, 0).numpy()
    if k is not None and k < 8:
        p[np.argsort(-p)[k:]] = 0
    assert_distributed(draw(SamplingConfig(temperature=temperature, top_k=k)), p)


def test_equal_logits_leave_exactly_k() -> None:
    counts = draw(SamplingConfig(top_k=3), logits=torch.zeros(1, 10))
    assert (counts > 0).sum() == 3
    assert_distributed(counts, (counts > 0).astype(float))


def test_top_p_keeps_the_least_set_that_holds_p() -> None:
    p = torch.softmax(LOGITS[0].double(), 0).numpy()
    order = np.argsort(-p)
    kept = order[: np.searchsorted(np.cumsum(p[order]), 0.7) + 1]
    expected = np.where(np.isin(np.arange(8), kept), p, 0)
    assert_distributed(draw(SamplingConfig(top_k=None, top_p=0.7)), expected)
    assert (draw(SamplingConfig(top_k=None, top_p=1e-9)) > 0).sum() == 1


def test_min_p_drops_what_is_unlikely_beside_the_best() -> None:
    p = torch.softmax(LOGITS[0].double(), 0).numpy()
    assert_distributed(draw(SamplingConfig(top_k=None, min_p=0.2)), np.where(p >= 0.2 * p.max(), p, 0))


def test_temperature_zero_is_greedy_and_a_tiny_one_nearly() -> None:
    assert (draw(SamplingConfig(temperature=0)) > 0).nonzero()[0].tolist() == [0]
    assert (draw(SamplingConfig(temperature=1e-30)) > 0).nonzero()[0].tolist() == [0]


def test_a_barred_id_is_never_chosen() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0]])
    for number in (0.0, 0.5, np.nextafter(1.0, 0.0)):
        for config in (SamplingConfig(), SamplingConfig(top_k=None), SamplingConfig(temperature=0)):
            assert sample(logits, config, torch.tensor([number])).item() in (1, 3)


def test_numbers_are_a_function_of_seed_row_and_position() -> None:
    assert (uniform(3, 8, 17)[:2] == uniform(3, 2, 17)).all()
    together = np.concatenate([uniform(seed, 16, position) for seed in range(8) for position in range(64)])
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < 1
    assert scipy.stats.kstest(together, "uniform").pvalue > 0.001


@pytest.mark.parametrize(
    "wrong",
    [{"top_k": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}, {"min_p": -0.1}],
)
def test_values_outside_their_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SamplingConfig(**wrong)  # type: ignore[arg-type]
