"""Parameter groups, optimizers, learning-rate schedule. Imports nothing of ours.

    adamw   AdamW for everything
    muon    Muon for the matrices inside the blocks, AdamW for the rest: embeddings, biases, norms

Source: Loshchilov and Hutter 2019 (AdamW); Jordan et al. 2024, "Muon"; Liu et al. 2025, "Muon is Scalable for LLM
Training", for the size of its updates.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of Muon's iteration: it brings singular values from (0, 1] to about 1, and small ones fast."""

AT_ONCE = 2**22
"""Muon takes matrices of one shape together up to so many numbers: small ones by themselves leave cores idle, and
large ones together leave the cache."""


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
            waiting: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                parts = self._directions(weight, weight.grad, group["momentum"])
                alike = waiting[parts.shape[1], parts.shape[2]]
                alike.append((weight, parts))
                if sum(each.numel() for _, each in alike) >= AT_ONCE:
                    _move(alike, group["lr"], group["weight_decay"])
                    alike.clear()
            for alike in waiting.values():
                _move(alike, group["lr"], group["weight_decay"])

    def _directions(self, weight: Tensor, grad: Tensor, momentum: float) -> Tensor:
        """(parts, rows, columns) in bfloat16: where matrices of a weight ought to go, none of them taller than wide."""
        state = self.state[weight]
        if not state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].lerp_(grad, 1 - momentum)
        update = grad.lerp(state["momentum"], momentum)
        whole = (update.full_tensor() if isinstance(update, DTensor) else update).bfloat16()
        rows, columns = whole.shape
        if columns == 3 * rows:
            return whole.reshape(rows, 3, rows).transpose(0, 1)
        return (whole.t() if rows > columns else whole)[None]


def _move(alike: list[tuple[Tensor, Tensor]], lr: float, weight_decay: float) -> None:
    """Change weights by what their matrices, all of one shape, are when made orthogonal."""
    if not alike:
        return
    rows, columns = alike[0][1].shape[1:]
    found = orthogonal(torch.cat([parts for _, parts in alike])).mul_(0.2 * math.sqrt(columns))
    counts = [len(parts) for _, parts in alike]
    for (weight, _), parts in zip(alike, torch.split(found, counts), strict=True):
        whole = parts.transpose(0, 1).reshape(rows, -1)
        whole = (whole.t() if weight.shape[0] > weight.shape[1] else whole).to(weight.dtype)
        if isinstance(weight, DTensor):
            whole = distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None)
        weight.mul_(1 - lr * weight_decay).add_(whole, alpha=-lr)


def orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """(N, rows, columns), not taller than wide: all singular values become about 1 (0.7 to 1.2).

    By Newton and Schulz's iteration, for which bfloat16 is enough.
    """
    a, b, c = QUINTIC
    x: Tensor = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)  # no singular value is above 1 then
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


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
