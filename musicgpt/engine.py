"""What `generate` runs on: ids -> logits -> ids, and a cache in between. `CpuEngine` does the same faster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from musicgpt.model import GPT, KVCache
from musicgpt.sampling import SamplingConfig, sample


class TorchEngine:
    """Any model on any device, by torch alone: the reference."""

    def __init__(self, model: GPT) -> None:
        self.model = model
        self.config = model.config

    @property
    def device(self) -> torch.device:
        return self.model.wpe.weight.device

    @property
    def exact(self) -> bool:
        """Whether logits are the same, to the last bit, however many ids are read together."""
        return False

    def ready(self, timeout: float | None = None) -> bool:
        """Whether it is as fast as it gets; waits for it so many seconds, or as long as it takes."""
        return True

    def cache(self, rows: int) -> KVCache:
        return KVCache(self.config, rows, device=self.device, dtype=self.model.wpe.weight.dtype)

    def prefill(self, ids: Sequence[int], cache: KVCache) -> Any:
        """Ids of one row -> (1, V) logits behind the last; the cache is advanced past them."""
        return self.model(torch.tensor([ids], device=self.device), cache, logits_to_keep=1)[:, -1]

    def extend(self, ids: Sequence[Sequence[int]], cache: KVCache, kept: int = 1) -> Any:
        """(B, T) new ids -> (B, kept, V) logits behind the last ones; the cache is advanced past them."""
        return self.model(torch.tensor(ids, device=self.device), cache, logits_to_keep=kept)

    def choose(
        self, logits: Any, config: SamplingConfig, uniform: np.ndarray, allowed: Sequence[np.ndarray] | None
    ) -> list[int]:
        """(B, V) logits, a number in [0, 1) and (V,) bool for each row -> an id for each."""
        if allowed is not None:
            logits = logits.masked_fill(~torch.from_numpy(np.stack(allowed)).to(logits.device), -torch.inf)
        return sample(logits, config, torch.from_numpy(uniform).to(logits.device)).tolist()
