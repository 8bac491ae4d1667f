"""GPT-2, all of it and nothing else: ids in, logits out. On CPUs its parts are those of cpu_ops.py where they serve.

    B batch · T positions · C width (n_embd) · H heads · D head size (C / H) · V vocabulary

Decoder-only blocks with causal self-attention, learned positions, layer norm before each half block and after
the last, a feed-forward of 4 C with tanh GELU, the head tied to the token embedding. Names, shapes and the
(in, out) orientation of the weight matrices are those of transformers' `GPT2LMHeadModel`, so weights pass both
ways without an adapter.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; sizes from its table 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from musicgpt import cpu_ops

LOGITS_AT_ONCE = 2**24
"""The loss never holds more logits than this at a time (64 MiB of float32)."""


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The shape of a model. Field names and meanings are those of transformers' `GPT2Config`."""

    vocab_size: int
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**31:
                raise ValueError(f"{name} is {value!r}; expected a whole number from 1 to 2,147,483,647")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}; expected a probability below 1")
        for name in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < 1:
                raise ValueError(f"{name} is {value!r}; expected a number between 0 and 1")

    @property
    def n_parameters(self) -> int:
        """Weights of the whole model, the tied head counted once; nothing is allocated."""
        c = self.n_embd
        attention = c * 3 * c + 3 * c + c * c + c
        mlp = c * 4 * c + 4 * c + 4 * c * c + c
        block = attention + mlp + 2 * 2 * c
        return (self.vocab_size + self.n_positions) * c + self.n_layer * block + 2 * c


PRESETS: Mapping[str, Mapping[str, int]] = {
    "nano": {"n_layer": 4, "n_head": 4, "n_embd": 128},
    "music-tiny": {"n_layer": 4, "n_head": 4, "n_embd": 256},
    "music-small": {"n_layer": 6, "n_head": 6, "n_embd": 384},
    "music-base": {"n_layer": 8, "n_head": 8, "n_embd": 512},
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
}
"""Depth, heads and width by name; vocabulary and context are the caller's.

nano          0.8 M weights in the blocks: first tries, and nanoGPT's small recipe for characters
music-tiny    3.2 M weights in the blocks: up to about 5 M training ids (some hundred pieces)
music-small  10.6 M: up to about 50 M ids (some thousand pieces)
music-base   25.2 M: more than that, still on a laptop
gpt2 … gpt2-xl  the four sizes of the paper; at V = 50,257 and 1,024 positions they have 124,439,808,
             354,823,168, 774,030,080 and 1,557,611,200 weights
"""


class KVCache:
    """Keys and values of the positions seen so far, for every layer.

    Allocated once for `n_positions`; `GPT.forward` (and `CpuEngine`, its faster half) writes behind `length` and
    advances it. No gradient passes through it.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (config.n_layer, 2, batch_size, config.n_head, config.n_positions, config.n_embd // config.n_head)
        self.length = 0
        self.data = torch.empty(shape, device=device, dtype=dtype)
        """(layers, keys and values, B, H, n_positions, D): what is behind `length` has no meaning, and no memory before
        it is written."""

    def repeat(self, batch_size: int) -> KVCache:
        """A cache of one row -> the same row `batch_size` times: a prompt is prefilled once for all samples."""
        copy = object.__new__(KVCache)
        copy.length, (layers, both, _, *rest) = self.length, self.data.shape
        copy.data = self.data.new_empty(layers, both, batch_size, *rest)
        copy.data[..., : self.length, :] = self.data[..., : self.length, :]
        return copy


class Conv1D(nn.Module):
    """x @ weight + bias. GPT-2 stores its matrices as (in, out), the transpose of `nn.Linear`."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.empty(n_out))

    def forward(self, x: Tensor) -> Tensor:
        if cpu_ops.is_much(x):
            return cpu_ops.Affine.apply(x, self.weight, self.bias)  # type: ignore[no-any-return,no-untyped-call]
        return F.linear(x, self.weight.t(), self.bias)


class CausalSelfAttention(nn.Module):
    """Every position looks at itself and those before it.

    On CPUs `cpu_ops.Attention` serves where it is faster, and all that have dropout of weights; else torch.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, past: Tensor | None, start: int) -> Tensor:
        B, T, C = x.shape
        qkv = self.c_attn(x)  # (B, T, 3 C)
        p = self.attn_pdrop if self.training else 0.0
        if past is None and cpu_ops.is_much(x) and cpu_ops.attends(qkv, p):
            y = cpu_ops.Attention.apply(qkv, self.n_head, p)  # type: ignore[no-untyped-call]
            return self.resid_dropout(self.c_proj(y))  # type: ignore[no-any-return]
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, D)
            for part in qkv.split(C, dim=2)
        )
        mask = None
        if past is not None:
            keys, values = past[0], past[1]
            keys[:, :, start : start + T] = k.detach()
            values[:, :, start : start + T] = v.detach()
            k, v = keys[:, :, : start + T], values[:, :, : start + T]
            # of another precision the cache is under autocast, and with int8 weights
            q, k, v = (part.to(torch.promote_types(q.dtype, k.dtype)) for part in (q, k, v))
            if start > 0 and T > 1:  # is_causal would align the triangle to the top left
                mask = torch.ones(T, start + T, dtype=torch.bool, device=x.device).tril(start)
        if q.dtype == torch.bfloat16 and q.device.type == "cpu" and past is None:
            q, k, v = q.float(), k.float(), v.float()  # torch's way back is slow in bfloat16
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=start == 0 and T > 1, dropout_p=p)
        y = y.transpose(1, 2).reshape(B, T, C).to(qkv.dtype)
        return self.resid_dropout(self.c_proj(y))  # type: ignore[no-any-return]


class MLP(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, 4 * config.n_embd)
        self.c_proj = Conv1D(4 * config.n_embd, config.n_embd)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        fast = cpu_ops.is_much(x) and cpu_ops.compiled("gelu", x.dtype)
        x = cpu_ops.GELU.apply(x) if fast else F.gelu(x, approximate="tanh")  # type: ignore[no-untyped-call]
        return self.dropout(self.c_proj(x))  # type: ignore[no-any-return]


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        fits = x.dtype == self.weight.dtype == torch.float32 and x.shape[-1:] == self.weight.shape
        fits = fits and x.device == self.weight.device
        if fits and cpu_ops.is_much(x) and cpu_ops.compiled("layer_norm", cpu_ops.precision(x)):
            return cpu_ops.LayerNorm.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-any-return,no-untyped-call]
        return super().forward(x)


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, past: Tensor | None, start: int) -> Tensor:
        x = x + self.attn(self.ln_1(x), past, start)
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


def embedding(n: int, width: int) -> nn.Embedding:
    """Without values: those that torch would begin with would be thrown away."""
    return nn.Embedding.from_pretrained(torch.empty(n, width), freeze=False)  # type: ignore[no-any-return, no-untyped-call]


class GPT(nn.Module):
    """(B, T) ids -> (B, T, V) logits. Built in training mode, initialised as GPT-2 was."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = embedding(config.vocab_size, config.n_embd)
        self.wpe = embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if not self.wte.weight.is_meta:  # nothing to fill; and `normal_` there loads torch's compiler: a second
            for name, weight in self.named_parameters():
                initialise(config, name, weight)

    def hidden(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """(B, T) ids -> (B, T, C) states after the final layer norm; advances the cache.

        Raises:
            ValueError: more positions than the model has learned.
        """
        start = cache.length if cache is not None else 0
        T = ids.shape[1]
        if start + T > self.config.n_positions:
            raise ValueError(f"{start + T} positions asked for; the model has learned {self.config.n_positions}")
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(start, start + T, device=ids.device)))
        for i, block in enumerate(self.h):
            x = block(x, cache.data[i] if cache is not None else None, start)
        if cache is not None:
            cache.length = start + T
        return self.ln_f(x)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor, cache: KVCache | None = None, *, logits_to_keep: int | None = None) -> Tensor:
        """(B, T) ids -> (B, T, V) logits, or of the last `logits_to_keep` positions only.

        With a cache, `ids` are the positions behind `cache.length`, and the cache is advanced past them.
        """
        x = self.hidden(ids, cache)
        if logits_to_keep is not None:
            x = x[:, -logits_to_keep:]
        return F.linear(x, self.wte.weight)

    def loss(self, ids: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
        """(B, T) ids and (B, T) targets -> mean (or "sum") nats per target; a target of -100 is not scored.

        With "none" (B, T) nats, 0 where not scored. The logits are made and let go in chunks of rows: at V = 50,257
        they would be the largest tensor by far.
        """
        x = self.hidden(ids).flatten(0, 1)  # (B T, C)
        flat = targets.flatten()  # (B T)
        rows = max(1, LOGITS_AT_ONCE // self.config.vocab_size)
        found = []
        for i in range(0, len(flat), rows):
            part = (x[i : i + rows], self.wte.weight, flat[i : i + rows], "none" if reduction == "none" else "sum")
            if len(flat) > rows and torch.is_grad_enabled():  # logits are made again on the way back
                found.append(checkpoint(_nats, *part, use_reentrant=False))
            else:
                found.append(_nats(*part))
        if reduction == "none":
            return torch.cat(found).view(targets.shape)
        total = torch.stack(found).sum()
        return total / (flat != -100).sum() if reduction == "mean" else total


def _nats(x: Tensor, head: Tensor, targets: Tensor, reduction: str) -> Tensor:
    logits = F.linear(x, head).float()
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction=reduction)


@torch.no_grad()
def initialise(config: GPTConfig, name: str, weight: Tensor) -> Tensor:
    """Fill one new weight: normal, biases zero; what feeds the residual stream is scaled by 1 / sqrt(2 n_layer)."""
    if ".ln_" in name or name.startswith("ln_"):
        return weight.fill_(0.0 if name.endswith("bias") else 1.0)
    if name.endswith("bias"):
        return weight.zero_()
    depth = 2 * config.n_layer if name.endswith("c_proj.weight") else 1
    return weight.normal_(0.0, config.initializer_range / math.sqrt(depth))


def empty(config: GPTConfig) -> GPT:
    """The model without storage: shapes and names only, for checks and for loading weights into."""
    with torch.device("meta"):
        return GPT(config)


def from_weights(config: GPTConfig, weights: Mapping[str, Any]) -> GPT:
    """Tensors by name -> a model that owns them, in evaluation mode; nothing is initialised in between."""
    model = empty(config)
    model.load_state_dict(dict(weights), assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()
