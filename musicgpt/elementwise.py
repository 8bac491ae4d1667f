"""Functions of numbers one by one and row by row, forth and back, compiled by numba: one pass where torch takes more.

C functions of one argument, the address of a job: a counter and what cpu_ops.py passes. They are run by all threads at
once, each of which draws the next piece from the counter until there is none, so that what is computed does not depend
on how many there are. Numbers are float32, or bfloat16 as the upper half of one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload

from musicgpt.kernels import by_vectors, exp, raised

AT_ONCE = 2**14
"""Numbers that a thread takes at a time."""

ROWS = 64
"""Rows of a layer norm that a thread takes at a time."""

JOB = 16

LINEAR, CUBIC = np.float32(1.5957691216057308), np.float32(0.07135481627159508)
"""Of u = x (LINEAR + CUBIC x^2), of which GELU's tanh form is x sigmoid(u): 2 sqrt(2 / pi), and 0.044715 times that."""


@intrinsic
def _pointer(typing_context, address, kind):
    """An address as a pointer to numbers of a kind."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.int64, kind), codegen


def _get(array: Any, i: int) -> Any:
    """array[i] as a float32."""


def _put(array: Any, i: int, value: Any) -> None:
    """array[i] = value, rounded to the nearest."""


@overload(_get, inline="always")
def _(array, i):
    if array.dtype == types.float32:
        return lambda array, i: array[i]
    return lambda array, i: np.uint32(np.uint32(array[i]) << np.uint32(16)).view(np.float32)


@overload(_put, inline="always")
def _(array, i, value):
    def single(array, i, value):
        array[i] = value

    def half(array, i, value):
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        array[i] = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return single if array.dtype == types.float32 else half


@numba.njit
def _pieces(job, size, n):
    """Where the pieces of n begin that this thread draws."""
    begin = (raised(job, 0) - 1) * size
    while begin < n:
        yield begin
        begin = (raised(job, 0) - 1) * size


@by_vectors
def _gelu(x, y):
    for i in range(x.shape[0]):
        v = _get(x, i)
        u = v * (LINEAR + CUBIC * v * v)
        _put(y, i, v / (np.float32(1) + exp(min(-u, np.float32(87)))))


@by_vectors
def _gelu_back(x, grad, to_x):
    for i in range(x.shape[0]):
        v = _get(x, i)
        u = v * (LINEAR + CUBIC * v * v)
        gate = np.float32(1) / (np.float32(1) + exp(min(-u, np.float32(87))))
        rise = v * (LINEAR + np.float32(3) * CUBIC * v * v)
        _put(to_x, i, _get(grad, i) * gate * (np.float32(1) + rise * (np.float32(1) - gate)))


@by_vectors
def _normalise(x, weight, bias, epsilon, moments, y):
    size = np.float32(x.shape[0])
    total = np.float32(0)
    for c in range(x.shape[0]):
        total += x[c]
    mean = total / size
    squares = np.float32(0)
    for c in range(x.shape[0]):
        squares += (x[c] - mean) * (x[c] - mean)
    factor = np.float32(1) / np.sqrt(squares / size + epsilon)
    for c in range(x.shape[0]):
        _put(y, c, (x[c] - mean) * factor * weight[c] + bias[c])
    moments[0], moments[1] = mean, factor


@by_vectors
def _normalise_back(x, weight, moments, grad, to_x, to_weight, to_bias):
    size, mean, factor = np.float32(x.shape[0]), moments[0], moments[1]
    total = along = np.float32(0)
    for c in range(x.shape[0]):
        g, normed = _get(grad, c), (x[c] - mean) * factor
        to_weight[c] += g * normed
        to_bias[c] += g
        total += g * weight[c]
        along += g * weight[c] * normed
    total, along = total / size, along / size
    for c in range(x.shape[0]):
        to_x[c] = factor * (_get(grad, c) * weight[c] - total - (x[c] - mean) * factor * along)


def _of(kind: Any) -> dict[str, Callable[..., Any]]:
    """The functions for numbers of a kind."""

    def gelu(job):
        job = numba.carray(job, (JOB,), np.int64)
        n = job[1]
        x, y = numba.carray(_pointer(job[2], kind), (n,)), numba.carray(_pointer(job[3], kind), (n,))
        for begin in _pieces(job, AT_ONCE, n):
            _gelu(x[begin : begin + AT_ONCE], y[begin : begin + AT_ONCE])

    def gelu_back(job):
        job = numba.carray(job, (JOB,), np.int64)
        n = job[1]
        x, grad = numba.carray(_pointer(job[2], kind), (n,)), numba.carray(_pointer(job[3], kind), (n,))
        to_x = numba.carray(_pointer(job[4], kind), (n,))
        for begin in _pieces(job, AT_ONCE, n):
            end = begin + AT_ONCE
            _gelu_back(x[begin:end], grad[begin:end], to_x[begin:end])

    def layer_norm(job):
        job = numba.carray(job, (JOB,), np.int64)
        N, C = job[1], job[2]
        x = numba.carray(_pointer(job[3], np.float32), (N, C))
        weight, bias = (
            numba.carray(_pointer(job[4], np.float32), (C,)),
            numba.carray(_pointer(job[5], np.float32), (C,)),
        )
        epsilon = numba.carray(_pointer(job[6], np.float32), (1,))[0]
        moments = numba.carray(_pointer(job[7], np.float32), (N, 2))
        y = numba.carray(_pointer(job[8], kind), (N, C))
        for begin in _pieces(job, ROWS, N):
            for n in range(begin, min(N, begin + ROWS)):
                _normalise(x[n], weight, bias, epsilon, moments[n], y[n])

    def layer_norm_back(job):
        job = numba.carray(job, (JOB,), np.int64)
        N, C = job[1], job[2]
        x = numba.carray(_pointer(job[3], np.float32), (N, C))
        weight, moments = (
            numba.carray(_pointer(job[4], np.float32), (C,)),
            numba.carray(_pointer(job[5], np.float32), (N, 2)),
        )
        grad, to_x = numba.carray(_pointer(job[6], kind), (N, C)), numba.carray(_pointer(job[7], np.float32), (N, C))
        sums = numba.carray(_pointer(job[8], np.float32), ((N + ROWS - 1) // ROWS, 2, C))
        for begin in _pieces(job, ROWS, N):
            own = sums[begin // ROWS]
            for n in range(begin, min(N, begin + ROWS)):
                _normalise_back(x[n], weight, moments[n], grad[n], to_x[n], own[0], own[1])

    return {each.__name__: each for each in (gelu, gelu_back, layer_norm, layer_norm_back)}


@cache
def function(name: str, dtype: str) -> Any:
    """A C function for "float32" or "bfloat16", compiled now; kept as kernels.py does it."""
    options: dict[str, Any] = {"error_model": "numpy"}
    signature = types.void(types.voidptr)
    source = _of({"float32": np.float32, "bfloat16": np.uint16}[dtype])[name]
    try:
        return numba.cfunc(signature, cache=True, **options)(source)
    except RuntimeError:
        return numba.cfunc(signature, **options)(source)
