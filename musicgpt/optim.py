"""Parameter groups, optimizer, learning-rate schedule. Imports nothing of ours."""

from __future__ import annotations

import math

import torch
from torch import nn


def make_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with GPT-3's betas (Brown et al. 2020); only matrices and embeddings decay."""
    matrices = [weight for weight in model.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), eps=1e-8, fused=True)


def learning_rate_at(step: int, *, steps: int, peak: float, warmup: float) -> float:
    """A line up to `peak` over the share `warmup` of the steps, then a cosine down to a tenth of it."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return peak * (step + 1) / rising
    share = min(1.0, (step - rising) / max(1, steps - rising))
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * share)))


def default_learning_rate(n_embd: int) -> float:
    """A rule of thumb: 1e-3 up to 512 wide, falling in proportion to the width beyond."""
    return 1e-3 * min(1.0, 512 / n_embd)
