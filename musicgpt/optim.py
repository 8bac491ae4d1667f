"""Parameter groups, optimizers, learning-rate schedule. Imports nothing of ours.

    adamw   AdamW for everything
    muon    Muon for the matrices inside the blocks, AdamW for the rest: embeddings, biases, norms

Source: Loshchilov and Hutter 2019 (AdamW); Jordan et al. 2024, "Muon"; Liu et al. 2025, "Muon is Scalable for LLM
Training", for the size of its updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of Muon's iteration: it brings singular values from (0, 1] to about 1, and small ones fast."""


def make_optimizers(
    model: nn.Module, optimizer: str, *, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """One or two optimizers for all weights; only matrices and embeddings decay. AdamW's betas: docs/log.md."""
    named = list(model.named_parameters())
    inner = [weight for name, weight in named if optimizer == "muon" and weight.ndim == 2 and name.startswith("h.")]
    taken = {id(weight) for weight in inner}
    rest = [weight for _, weight in named if id(weight) not in taken]
    groups = [
        {"params": [weight for weight in rest if weight.ndim >= 2], "weight_decay": weight_decay},
        {"params": [weight for weight in rest if weight.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), eps=1e-8, fused=True)
    return [Muon(inner, lr=learning_rate, weight_decay=weight_decay), adamw] if inner else [adamw]


class Muon(torch.optim.Optimizer):
    """Nesterov's momentum of a matrix, made orthogonal: all its directions change by the same amount.

    The update is scaled to the root mean square of AdamW's, so one learning rate and one weight decay serve both. A
    matrix that is three times as wide as high holds queries, keys and values, each made orthogonal by itself. Weights
    may be sharded: every process then does the whole matrix and keeps its part, so the result is that of one process.
    """

    def __init__(self, weights: Iterable[Tensor], *, lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(state["momentum"], group["momentum"])
                whole = update.full_tensor() if isinstance(update, DTensor) else update
                parts = [
                    orthogonal(part).mul_(0.2 * math.sqrt(max(part.shape)))
                    for part in whole.chunk(3 if whole.shape[1] == 3 * whole.shape[0] else 1, dim=1)
                ]
                whole = torch.cat(parts, dim=1).to(weight.dtype)
                if isinstance(weight, DTensor):
                    whole = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(whole, alpha=-group["lr"])


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """The matrix with all singular values about 1 (0.7 to 1.2), by Newton and Schulz's iteration in bfloat16."""
    a, b, c = QUINTIC
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = x.t() if tall else x
    x = x / (x.norm() + 1e-7)  # no singular value is above 1 then
    for _ in range(steps):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.t() if tall else x


def learning_rate_at(step: int, optimizer: str, *, steps: int, warmup: float) -> float:
    """The share of the peak: a line up over the share `warmup` of the steps, then down.

    With Muon along a line to nothing, with AdamW along a cosine to a tenth.
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    done = min(1.0, (step - rising) / max(1, steps - rising))
    return 1 - done if optimizer == "muon" else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def default_learning_rate(n_embd: int, optimizer: str) -> float:
    """A rule of thumb: with Muon 5e-3 at 256 wide, with AdamW 1e-3 at 512, falling in proportion to the width.

    No more than 1e-2 and 1e-3, where a model is narrower.
    """
    return min(1e-2, 5e-3 * 256 / n_embd) if optimizer == "muon" else 1e-3 * min(1.0, 512 / n_embd)
