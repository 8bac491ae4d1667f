"""(B, V) logits and one random number a row -> (B,) ids. Imports nothing of ours.

The order is fixed: mask, temperature, top-k, top-p, min-p, choice. The choice is the inverse of the cumulative
distribution at a number in [0, 1), and that number is a function of (seed, row, position) alone: rows of a batch
are independent, and a draw can be repeated out of order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # `musicgpt generate --help` reads the fields below and must not wait for torch
    from torch import Tensor

NUMBERS_AT_ONCE = 256
"""To set a generator up takes as long as some hundred of its numbers."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the next id is chosen from the model's distribution.

    Raises:
        ValueError: a value outside its range, naming the field.
    """

    temperature: float = field(default=1.0, metadata={"help": "flatten (above 1) or sharpen (below 1); 0 is greedy"})
    top_k: int | None = field(default=40, metadata={"help": "choose among exactly the K most likely"})
    top_p: float | None = field(
        default=None, metadata={"help": "choose among the most likely that together hold this share of probability"}
    )
    min_p: float | None = field(
        default=None, metadata={"help": "drop what is less likely than this share of the most likely"}
    )
    guidance: float = field(
        default=1.0,
        metadata={"help": "go so many times as far from what the model would do unasked to what it does by controls"},
    )
    """For `generate`, which reads all twice where it is not 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; expected at least 1 (no limit: --no-top-k, or None)")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a share above 0, at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; expected a share from 0 to 1")
        if not 0 <= self.guidance <= 100:
            raise ValueError(f"guidance is {self.guidance}; expected at least 0, at most 100; 1 is none")


def uniform(seed: int, rows: int, position: int) -> np.ndarray:
    """The random numbers of one position: (rows,) float64 in [0, 1), a function of (seed, row, position).

    Philox is a counter-based generator: any of its blocks can be computed without those before it
    (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
    """
    block, place = divmod(position, NUMBERS_AT_ONCE)
    return np.array([_numbers(seed, row, block)[place] for row in range(rows)])


@lru_cache(maxsize=2048)
def _numbers(seed: int, row: int, block: int) -> np.ndarray:
    raw = np.random.Philox(key=seed, counter=[0, block, row, 0]).random_raw(NUMBERS_AT_ONCE)
    return (raw >> np.uint64(11)) * 2.0**-53


def sample(logits: Tensor, config: SamplingConfig, uniform: Tensor) -> Tensor:
    """(B, V) logits and (B,) numbers in [0, 1) -> (B,) ids.

    Exactly k candidates, also where the k-th logit has equals. An id whose logit is -inf is never chosen.
    """
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    k = min(config.top_k or logits.shape[-1], logits.shape[-1])
    values, ids = logits.float().topk(k, dim=-1)  # (B, k), falling
    # in double precision: in single, a temperature of 1e-50 would be 0
    probabilities = ((values - values[:, :1]).double() / config.temperature).softmax(dim=-1)
    if config.top_p is not None:  # keep an id while those before it do not yet hold top_p
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.where(before < config.top_p, 0.0)
    if config.min_p is not None:
        probabilities = probabilities.where(probabilities >= config.min_p * probabilities[:, :1], 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform.double()[:, None] * cumulative[:, -1:]
    chosen = (cumulative <= threshold).sum(dim=-1, keepdim=True)
    # rounding may put the threshold on the total itself: then it is the last id that has any probability
    chosen = chosen.minimum((probabilities > 0).sum(dim=-1, keepdim=True) - 1)
    return ids.gather(-1, chosen)[:, 0]
