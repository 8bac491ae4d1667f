"""A model with int8 weights: a quarter of the memory to keep and to read, and a loss that docs/performance.md measures.

Each output of a matrix has a scale of its own, so that its largest weight is 127. The matrices hold nearly all weights;
positions, biases and norms stay as they are. torch multiplies with floats made of them on the way, which is slow for a
single id; `CpuEngine` reads them as they are, and rounds what it multiplies them with, by far less than this does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from musicgpt.model import GPT, Conv1D


class Int8(nn.Module):
    """What a weight is made of: (out, in) int8 and (out,) scales. Conv1D has its weight as (in, out)."""

    def __init__(self, *, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed

    def forward(self, whole: Tensor, scale: Tensor) -> Tensor:
        weight = whole * scale[:, None]
        return weight.t() if self.transposed else weight

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        rows = weight.t() if self.transposed else weight
        scale = rows.abs().amax(dim=1).clamp(min=torch.finfo(rows.dtype).tiny) / 127
        return (rows / scale[:, None]).round().to(torch.int8).contiguous(), scale


def to_int8(model: GPT) -> GPT:
    """The same model, its matrices rounded, for inference only."""
    model.requires_grad_(False)
    for module in [*model.modules()]:
        if isinstance(module, Conv1D) or module is model.wte:
            parametrize.register_parametrization(module, "weight", Int8(transposed=isinstance(module, Conv1D)))
    return model.eval()


def parts(module: nn.Module) -> tuple[Tensor, Tensor]:
    """(out, in) int8 and (out,) scales of a matrix of such a model."""
    made = module.parametrizations.weight  # type: ignore[union-attr]
    return made.original0, made.original1  # type: ignore[union-attr,return-value]


def is_int8(module: nn.Module) -> bool:
    """Whether this matrix, or that of a model's embeddings, is one of them."""
    return parametrize.is_parametrized(module.wte if isinstance(module, GPT) else module, "weight")
