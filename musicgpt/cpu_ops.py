"""What training and long prompts take their time for on CPUs: products, GELU, layer norm, attention, forth and back.

Each gives what torch's gives, but for rounding, and is faster where `is_much` says so (docs/performance.md); elsewhere
model.py calls torch.

    B batch · T positions · C width · H heads · D head size (C / H) · N rows
"""

from __future__ import annotations

import ctypes
import platform
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK, SCORES_AT_ONCE = 256, 2**21
"""Positions that attention takes at once, and scores of them for some heads."""

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


def is_much(x: Tensor) -> bool:
    """Whether (..., C) is work for what follows: products and functions for CPUs that bring their own way back."""
    if type(x) is not Tensor or x.device.type != "cpu" or ONEDNN is None or torch.compiler.is_compiling():
        return False  # of a subclass there may be no numbers in memory
    return x.shape[:-1].numel() >= LEAST_ROWS and precision(x) in PRECISIONS


def precision(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """(n, m) @ (m, k) + (k,) -> (n, k) by oneDNN, without a gradient."""
    return ONEDNN(a, b.t(), bias, "none", [], "")  # type: ignore[no-any-return,misc]


def over_rows(x: Tensor, grad: Tensor) -> Tensor:
    """(n, m) and (n, k) -> x.T @ grad: the gradient of a matrix, by whichever call is the faster one."""
    if x.dtype != torch.float32 or not MKL_IS_SLOW:
        with torch.autocast("cpu", enabled=False):
            return x.t() @ grad
    if x.shape[1] <= grad.shape[1]:  # oneDNN's linear copies its first factor when it is transposed
        return product(x.t(), grad)
    return product(grad.t(), x).t()


ROWS = 64
"""Of a layer norm, for each of which there is one sum towards the gradient of its weight."""


def compiled(name: str, dtype: torch.dtype) -> bool:
    """Whether there is such a function of elementwise.py, and its way back. It is compiled now, some seconds once a
    machine; but for who waits for music (in inference mode) torch serves until `compile_for_prompts` has done it."""
    if torch.is_inference_mode_enabled():
        return _compiled.get((name, dtype)) is not None
    return _compile(name, dtype) is not None and _compile(f"{name}_back", dtype) is not None


def compile_for_prompts() -> None:
    for name in ("gelu", "layer_norm"):
        _compile(name, torch.float32)


_compiled: dict[tuple[str, torch.dtype], Any] = {}
"""C functions; None for one that does not compile here."""


def _compile(name: str, dtype: torch.dtype) -> Any:
    if (name, dtype) not in _compiled:
        try:
            from musicgpt import elementwise

            _compiled[name, dtype] = elementwise.function(name, str(dtype).removeprefix("torch."))
        except Exception as error:  # whatever a compiler meets on a machine we have not seen: there is torch
            warnings.warn(f"the fast functions do not compile here, torch goes on alone: {error}", stacklevel=1)
            _compiled[name, dtype] = None
    return _compiled[name, dtype]


@cache
def _fork() -> Any:
    """The function of GNU's OpenMP that runs another in all threads of torch; None where torch has another OpenMP."""
    try:
        return ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, OSError, TypeError):
        return None


def _everywhere(name: str, dtype: torch.dtype, *numbers: int | Tensor) -> None:
    """Run a function of elementwise.py in as many threads as torch has; of tensors it gets the addresses.

    In torch's own threads, where that can be: those still spin when its last function has ended, and would take the
    cores from others.
    """
    for x in numbers:
        if isinstance(x, Tensor) and not (
            x.device.type == "cpu" and x.is_contiguous() and x.dtype in (dtype, torch.float32)
        ):
            raise TypeError(f"{name} was given {x.dtype} on {x.device}, {x.stride()}; expected numbers side by side")
    function, threads = _compile(name, dtype), torch.get_num_threads()
    job = np.array([0, *(x.data_ptr() if isinstance(x, Tensor) else x for x in numbers)], dtype=np.int64)
    if threads == 1:
        function.ctypes(job.ctypes.data)
    elif (fork := _fork()) is not None:
        fork(ctypes.c_void_p(function.address), ctypes.c_void_p(job.ctypes.data), threads, 0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(function.ctypes, [job.ctypes.data] * threads))


class Affine(torch.autograd.Function):
    """x @ weight + bias on a CPU, in the precision of autocast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        dtype = precision(x)
        rows = x.flatten(0, -2).to(dtype)
        ctx.save_for_backward(rows, weight)
        return product(rows, weight.to(dtype), bias.to(dtype)).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        grad = gradients[0].flatten(0, -2).to(rows.dtype)
        to_x, to_weight, to_bias = ctx.needs_input_grad
        return (
            product(grad, weight.to(rows.dtype).t()).view(*gradients[0].shape[:-1], -1) if to_x else None,
            over_rows(rows, grad) if to_weight else None,
            grad.sum(0) if to_bias else None,
        )


class GELU(torch.autograd.Function):
    """GELU in its tanh form, in one pass each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        y = torch.empty_like(x)
        _everywhere("gelu", x.dtype, x.numel(), x, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        to_x = torch.empty_like(x)
        _everywhere("gelu_back", x.dtype, x.numel(), x, gradients[0].to(x.dtype).contiguous(), to_x)
        return to_x


class LayerNorm(torch.autograd.Function):
    """Layer norm of (..., C) float32, in the precision of autocast."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        x, dtype, C = x.contiguous(), precision(x), x.shape[-1]
        y, moments = x.new_empty(x.shape, dtype=dtype), x.new_empty(*x.shape[:-1], 2)
        least = x.new_tensor(epsilon)
        _everywhere("layer_norm", dtype, x.numel() // C, C, x, weight, bias, least, moments, y)
        ctx.save_for_backward(x, weight, moments)
        ctx.dtype = dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, moments = ctx.saved_tensors
        N, C = moments.shape[:-1].numel(), x.shape[-1]
        grad, to_x = gradients[0].to(ctx.dtype).contiguous(), torch.empty_like(x)
        sums = x.new_zeros(-(-N // ROWS), 2, C)
        _everywhere("layer_norm_back", ctx.dtype, N, C, ROWS, x, weight, moments, grad, to_x, sums)
        to_weight, to_bias = sums.sum(0)
        return to_x, to_weight, to_bias, None


class Attention(torch.autograd.Function):
    """Causal attention, (B, T, 3 C) queries, keys and values -> (B, T, C), with dropout of weights by `p`.

    Scores live for BLOCK positions of some heads at a time, and are worked out again on the way back: memory grows with
    T, and no work is done above the diagonal but in its own squares. On the way there a block is of queries, on the way
    back of keys, so that what is kept of a row is its softmax's sum alone. `p` is rounded to a 256th.

    Source: Dao et al. 2022, "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness".
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, n_head: int, p: float) -> Tensor:
        B, T, C = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        D = C // n_head
        ctx.dropped = min(255, max(1, round(256 * p))) if p else 0
        ctx.seed = int(torch.randint(2**31, (), device="cpu")) if ctx.dropped else 0
        heads = qkv.view(B, T, 3, n_head, D).permute(2, 0, 3, 1, 4).contiguous().view(3, B * n_head, T, D)
        q, k, v = heads
        if AMX and not p and qkv.dtype == torch.bfloat16:  # there torch's is as fast as it gets
            parts = (part.view(B, n_head, T, D) for part in heads)
            y, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, is_causal=True)  # noqa: SLF001
            sums = sums.contiguous().view(B * n_head, T)
        else:
            y, sums = torch.empty_like(q), q.new_empty(B * n_head, T, dtype=torch.float32)
            for some, first, last in _blocks(q):
                weights = _products(q[some, first:last], k[some, :last].transpose(1, 2))
                size = (len(weights), last - first, last, first, T, ctx.dropped, ctx.seed + some.start, D)
                _everywhere("attention", qkv.dtype, *size, weights, sums[some])
                y[some, first:last] = _products(weights, v[some, :last])
        y = y.view(B, n_head, T, D).transpose(1, 2).reshape(B, T, C)
        ctx.save_for_backward(heads, y, sums)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        heads, y, sums = ctx.saved_tensors
        q, k, v = heads
        (B, T, C), D = y.shape, q.shape[2]
        H = C // D
        grad = gradients[0].to(q.dtype).reshape(B, T, H, D)
        along = (grad.float() * y.view(B, T, H, D)).sum(-1)  # no product of torch's: autocast would round it
        along = along.transpose(1, 2).contiguous().view(B * H, T)
        grad = grad.transpose(1, 2).reshape(B * H, T, D)
        to_q, to_k, to_v = q.new_zeros(B * H, D, T, dtype=torch.float32), torch.empty_like(k), torch.empty_like(v)
        for some, first, last in _blocks(q):
            weights = _products(k[some, first:last], q[some, first:].transpose(1, 2))
            to_scores = _products(v[some, first:last], grad[some, first:].transpose(1, 2))
            size = (len(weights), last - first, T - first, first, T, ctx.dropped, ctx.seed + some.start, D)
            _everywhere("attention_back", q.dtype, *size, weights, to_scores, sums[some], along[some])
            to_v[some, first:last] = _products(weights, grad[some, first:])
            to_k[some, first:last] = _products(to_scores, q[some, first:])
            # as (D, T): a product that gives these is half as fast again as one that gives (T, D)
            to_q[some, :, first:].add_(_products(k[some, first:last].transpose(1, 2), to_scores))
        to_heads = q.new_empty(B, T, 3, H, D)
        for i, part in enumerate((to_q.transpose(1, 2), to_k, to_v)):
            to_heads[:, :, i] = part.view(B, H, T, D).transpose(1, 2)
        return to_heads.view(B, T, 3 * C), None, None


def attends(qkv: Tensor, p: float) -> bool:
    """Whether `Attention` is to serve: with dropout always, else for long sequences, where it is faster."""
    T, single = qkv.shape[1], qkv.dtype == torch.float32
    is_long = MKL_IS_SLOW and T >= BLOCK if single else T >= BLOCK // 2
    return bool(p or is_long) and compiled("attention", qkv.dtype)


def _blocks(q: Tensor) -> Iterator[tuple[slice, int, int]]:
    """Some heads of (B H, T, D), first and last position of a block of theirs."""
    heads, T, _ = q.shape
    alone = MKL_IS_SLOW and q.dtype == torch.float32 and T >= BLOCK
    at_once = 1 if alone else max(1, SCORES_AT_ONCE // (BLOCK * T))
    for n in range(0, heads, at_once):
        for first in range(0, T, BLOCK):
            yield slice(n, min(heads, n + at_once)), first, min(T, first + BLOCK)


def _products(a: Tensor, b: Tensor) -> Tensor:
    """(heads, n, m) @ (heads, m, k) -> (heads, n, k); of a single head by oneDNN."""
    if len(a) == 1:
        return product(a[0], b[0])[None]
    with torch.autocast("cpu", enabled=False):
        return torch.bmm(a, b)
