"""GPT-2, all of it and nothing else: ids in, logits out. Imports nothing of ours.

    B batch · T positions · C width (n_embd) · H heads · D head size (C / H) · V vocabulary

Decoder-only blocks with causal self-attention, learned positions, layer norm before each half block and after
the last, a feed-forward of 4 C with tanh GELU, the head tied to the token embedding. Names, shapes and the
(in, out) orientation of the weight matrices are those of transformers' `GPT2LMHeadModel`, so weights pass both
ways without an adapter.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; sizes from its table 2.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

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
        if _is_much(x):
            return _Affine.apply(x, self.weight, self.bias)  # type: ignore[no-any-return,no-untyped-call]
        return F.linear(x, self.weight.t(), self.bias)


class CausalSelfAttention(nn.Module):
    """Every position looks at itself and those before it.

    On CPUs all sequences with `attn_pdrop` in training go through `_Attention`, and where MKL is slow long ones; the
    rest through torch.
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
        if past is None and _is_much(x) and (p or (MKL_IS_SLOW and T >= QUERIES_AT_ONCE)):
            y = _Attention.apply(qkv, self.n_head, p)  # type: ignore[no-untyped-call]
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
            q = q.to(k.dtype)  # under autocast the cache may be of another precision than the projection
            if start > 0 and T > 1:  # is_causal would align the triangle to the top left
                mask = torch.ones(T, start + T, dtype=torch.bool, device=x.device).tril(start)
        if q.dtype == torch.bfloat16 and q.device.type == "cpu" and past is None and (T <= QUERIES_AT_ONCE or not AMX):
            q, k, v = q.float(), k.float(), v.float()  # with AMX, too, torch's way back is slow where it is short
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
        if _is_much(x) and (MKL_IS_SLOW or x.dtype == torch.float32):  # in bfloat16 torch's is as fast on Intel's cores
            x = _GELU.apply(x)  # type: ignore[no-untyped-call]
        else:
            x = F.gelu(x, approximate="tanh")
        return self.dropout(self.c_proj(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
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
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
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


# The same on CPUs, faster: products, GELU and attention with ways back of their own. Each gives what torch's gives, but
# for rounding; where they do not serve, the modules above call torch.

QUERIES_AT_ONCE = 256
"""Attention on a CPU takes so many positions of one head at a time: their scores then stay in a core's cache."""

ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
"""x @ weight.T + bias by oneDNN, where torch has it; its BLAS reaches half of that speed in float32 on AMD's cores."""

PRECISIONS = {torch.float32}
"""In which oneDNN has products on this CPU: for bfloat16 it has no other way than the hardware's."""
if getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)():
    PRECISIONS.add(torch.bfloat16)

LEAST_ROWS = 32
"""With fewer rows than this a product is bound by memory, and torch's own call is as good."""


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()


MKL_IS_SLOW = "AuthenticAMD" in _processor()
"""On AMD's cores products in float32 and long attention take torch, which has MKL for them, up to twice as long as what
is built on oneDNN here; on Intel's torch is as fast or faster (docs/performance.md)."""

AMX = bool(torch.cpu.get_capabilities().get("amx_bf16"))
"""Whether the CPU multiplies tiles of bfloat16: where not, torch's attention takes up to ten times as long on its way
back in bfloat16 as in float32."""


def _is_much(x: Tensor) -> bool:
    """Whether (..., C) is work for what follows: products and functions for CPUs that bring their own way back."""
    if x.device.type != "cpu" or ONEDNN is None or torch.compiler.is_compiling():
        return False
    return x.shape[:-1].numel() >= LEAST_ROWS and _precision(x) in PRECISIONS


def _precision(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, m) @ (m, k) + (k,) -> (n, k) by oneDNN, without a gradient."""
    return ONEDNN(a, b.t(), bias, "none", [], "")  # type: ignore[no-any-return,misc]


def _over_rows(x: Tensor, grad: Tensor) -> Tensor:
    """(n, m) and (n, k) -> x.T @ grad: the gradient of a matrix, by whichever call is the faster one."""
    if x.dtype != torch.float32 or not MKL_IS_SLOW:
        return x.t() @ grad
    if x.shape[1] <= grad.shape[1]:  # oneDNN's linear copies its first factor when it is transposed
        return _product(x.t(), grad)
    return _product(grad.t(), x).t()


class _Affine(torch.autograd.Function):
    """x @ weight + bias on a CPU, in the precision of autocast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        dtype = _precision(x)
        rows = x.flatten(0, -2).to(dtype)
        ctx.save_for_backward(rows, weight)
        return _product(rows, weight.to(dtype), bias.to(dtype)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        grad = gradients[0].flatten(0, -2).to(rows.dtype)
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.to(rows.dtype).t()).view(*gradients[0].shape[:-1], -1) if to_x else None,
            _over_rows(rows, grad) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


class _GELU(torch.autograd.Function):
    """GELU in its tanh form on a CPU: 0.5 (1 + tanh(u)) is sigmoid(2 u), which torch does in an eighth of the time.

    In float32, a piece at a time, so that what is in between stays in the cache.
    """

    LINEAR = 2 * math.sqrt(2 / math.pi)
    CUBIC = LINEAR * 0.044715

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        for into, part in zip(_pieces(y), _pieces(x), strict=True):
            part = part.float()
            into.copy_((part * part).mul_(_GELU.CUBIC).add_(_GELU.LINEAR).mul_(part).sigmoid_().mul_(part))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        to_x = torch.empty_like(x)
        for into, part, grad in zip(_pieces(to_x), _pieces(x), _pieces(gradients[0].contiguous()), strict=True):
            part = part.float()
            square = part * part
            gate = (square * _GELU.CUBIC).add_(_GELU.LINEAR).mul_(part).sigmoid_()
            rise = square.mul_(3 * _GELU.CUBIC).add_(_GELU.LINEAR).mul_(part)
            into.copy_(rise.addcmul_(rise, gate, value=-1).add_(1).mul_(gate).mul_(grad))
        return to_x


def _pieces(x: Tensor) -> tuple[Tensor, ...]:
    at_once = 2**15 * torch.get_num_threads()  # the least that torch spreads over its threads
    return torch.split(x.view(-1), at_once)


class _Attention(torch.autograd.Function):
    """Causal attention on a CPU, (B, T, 3 C) queries, keys and values -> (B, T, C), with dropout of weights by `p`.

    Scores live for QUERIES_AT_ONCE positions of one head at a time and are worked out again on the way back, so memory
    grows with T, and no work is done above the diagonal but in its own squares. `p` is rounded to a 256th: a byte of
    chance for each weight costs a quarter of what torch's own draws do.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_head: int, p: float) -> Tensor:
        B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        ctx.heads = (B, T, 3, n_head, C // n_head)
        ctx.dropped = min(255, max(1, round(256 * p))) if p else 0
        ctx.seed = int(torch.randint(2**62, ())) if ctx.dropped else 0
        heads = qkv.view(ctx.heads).permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
        heads = heads.view(3, B * n_head, T, C // n_head)
        q, k, v = heads
        q /= math.sqrt(C // n_head)
        ctx.save_for_backward(heads)
        y = qkv.new_empty(B, T, n_head, C // n_head)
        for n, first, last, weights, kept in _Attention.parts(ctx, q, k):
            mixed = _product(weights if kept is None else weights * kept, v[n, :last])
            y[n // n_head, first:last, n % n_head] = mixed
        return y.view(B, T, C)

    @staticmethod
    def parts(ctx: Any, q: Tensor, k: Tensor) -> Iterator[tuple[int, int, int, Tensor, Tensor | None]]:
        """Head, first and last query, the weights of those, and which of them dropout keeps (scaled)."""
        T = q.shape[1]
        chance = torch.Generator().manual_seed(ctx.seed)
        above = q.new_full((QUERIES_AT_ONCE, QUERIES_AT_ONCE), -math.inf).triu(1)
        for n in range(len(q)):
            for first in range(0, T, QUERIES_AT_ONCE):
                last = min(T, first + QUERIES_AT_ONCE)
                rows = last - first
                scores = _product(q[n, first:last], k[n, :last].t())
                scores[:, first:] += above[:rows, :rows]
                kept = None
                if ctx.dropped:
                    draws = torch.empty(-(-rows * last // 8), dtype=torch.int64).random_(
                        -(2**63), None, generator=chance
                    )
                    kept = draws.view(torch.uint8)[: rows * last].view(rows, last) >= ctx.dropped
                    kept = kept.to(q.dtype).mul_(256 / (256 - ctx.dropped))
                yield n, first, last, torch.softmax(scores, -1), kept

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (heads,) = ctx.saved_tensors
        q, k, v = heads
        B, T, _, H, D = ctx.heads
        grad = gradients[0].reshape(B, T, H, D).transpose(1, 2).to(q.dtype).contiguous().view(q.shape)
        to_heads = q.new_empty(ctx.heads)
        # as (D, T): a product that gives these is half as fast again as one that gives (T, D)
        to_k, to_v = (q.new_zeros(len(q), D, T, dtype=torch.float32) for _ in range(2))
        for n, first, last, weights, kept in _Attention.parts(ctx, q, k):
            some = grad[n, first:last]
            to_weights = _product(some, v[n, :last].t())
            if kept is not None:
                to_weights *= kept
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, q.dtype)  # noqa: SLF001
            to_heads[n // H, first:last, 0, n % H] = _product(to_scores, k[n, :last])
            to_k[n, :, :last] += _product(q[n, first:last].t(), to_scores)
            to_v[n, :, :last] += _product(some.t(), weights if kept is None else weights * kept)
        to_heads[:, :, 0] /= math.sqrt(D)
        to_heads[:, :, 1] = to_k.view(B, H, D, T).permute(0, 3, 1, 2)
        to_heads[:, :, 2] = to_v.view(B, H, D, T).permute(0, 3, 1, 2)
        return to_heads.view(B, T, 3 * H * D), None, None
