"""Functions of numbers one by one and row by row, forth and back, compiled by numba: one pass where torch takes more.

C functions of one argument, the address of a job: a counter and what cpu_ops.py passes. They are run by all threads at
once, each of which draws the next piece from the counter until there is none, so that what is computed does not depend
on how many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import types

from musicgpt import kernels
from musicgpt.kernels import CUBIC, LINEAR, by_vectors, exp, get, normalise, pointer, put, raised, softmax

AT_ONCE = 2**14
"""Numbers that a thread takes at a time."""

ROWS = 64
"""Rows that a thread takes at a time."""

JOB = 16

VERSION = hashlib.sha256(Path(kernels.__file__).read_bytes()).hexdigest()[:8]
"""Of kernels.py, whose functions become part of these: what numba keeps it forgets when the file of the caller changes,
or its name."""


@numba.njit
def _pieces(job, size, n):
    """Where the pieces of n begin that this thread draws."""
    begin = (raised(job, 0) - 1) * size
    while begin < n:
        yield begin
        begin = (raised(job, 0) - 1) * size


@by_vectors
def _gelu_back(x, grad, to_x):
    for i in range(x.shape[0]):
        v = get(x, i)
        u = v * (LINEAR + CUBIC * v * v)
        gate = np.float32(1) / (np.float32(1) + exp(min(-u, np.float32(87))))
        rise = v * (LINEAR + np.float32(3) * CUBIC * v * v)
        put(to_x, i, get(grad, i) * gate * (np.float32(1) + rise * (np.float32(1) - gate)))


@by_vectors
def _normalise_back(x, weight, moments, grad, to_x, to_weight, to_bias):
    size, mean, factor = np.float32(x.shape[0]), moments[0], moments[1]
    total = along = np.float32(0)
    for c in range(x.shape[0]):
        g, normed = get(grad, c), (x[c] - mean) * factor
        to_weight[c] += g * normed
        to_bias[c] += g
        total += g * weight[c]
        along += g * weight[c] * normed
    total, along = total / size, along / size
    for c in range(x.shape[0]):
        to_x[c] = factor * (get(grad, c) * weight[c] - total - (x[c] - mean) * factor * along)


@by_vectors
def _mixed(x):
    """Bits that look random from a count: any part of them can be made again, anywhere, in any order (the multipliers
    are those of Wellons, "hash-prospector", lowbias32)."""
    x = np.uint32((x ^ np.uint32(x >> np.uint32(16))) * np.uint32(0x7FEB352D))
    x = np.uint32((x ^ np.uint32(x >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(x ^ np.uint32(x >> np.uint32(16)))


@by_vectors
def _kept(seed, first, step, dropped, factors):
    """Which weights dropout keeps, of every `step`th from the `first` of a head, and what they are multiplied with."""
    mask, factor = _mixed(np.uint32(seed)), np.float32(256) / np.float32(256 - dropped)
    for c in range(factors.shape[0]):
        byte = np.uint32(_mixed(np.uint32(np.uint32(first + c * step) ^ mask)) >> np.uint32(24))
        factors[c] = factor if byte >= dropped else np.float32(0)


@by_vectors
def _softmax(scores, scale, row):
    """In place -> the logarithm of the sum; `row` is as long as `scores`."""
    for c in range(row.shape[0]):
        row[c] = get(scores, c)
    total = softmax(row, scale)
    for c in range(row.shape[0]):
        put(scores, c, row[c])
    return total


@by_vectors
def _softmax_back(scores, to_weights, scale, sums, along):
    """In place: scores -> weights; gradients of weights -> of scores."""
    for c in range(scores.shape[0]):
        weight = exp(min(get(scores, c) * scale - sums[c], np.float32(87)))
        put(scores, c, weight)
        put(to_weights, c, weight * (get(to_weights, c) - along[c]) * scale)


@by_vectors
def _multiplied(x, factors):
    for c in range(x.shape[0]):
        put(x, c, get(x, c) * factors[c])


def _of(kind: Any) -> dict[str, Callable[..., Any]]:
    """The functions for numbers of a kind."""

    def gelu(job):
        job = numba.carray(job, (JOB,), np.int64)
        n = job[1]
        x, y = numba.carray(pointer(job[2], kind), (n,)), numba.carray(pointer(job[3], kind), (n,))
        for begin in _pieces(job, AT_ONCE, n):
            kernels.gelu(x[begin : begin + AT_ONCE], y[begin : begin + AT_ONCE])

    def gelu_back(job):
        job = numba.carray(job, (JOB,), np.int64)
        n = job[1]
        x, grad = numba.carray(pointer(job[2], kind), (n,)), numba.carray(pointer(job[3], kind), (n,))
        to_x = numba.carray(pointer(job[4], kind), (n,))
        for begin in _pieces(job, AT_ONCE, n):
            end = begin + AT_ONCE
            _gelu_back(x[begin:end], grad[begin:end], to_x[begin:end])

    def layer_norm(job):
        job = numba.carray(job, (JOB,), np.int64)
        N, C = job[1], job[2]
        x = numba.carray(pointer(job[3], np.float32), (N, C))
        weight, bias = (
            numba.carray(pointer(job[4], np.float32), (C,)),
            numba.carray(pointer(job[5], np.float32), (C,)),
        )
        epsilon = numba.carray(pointer(job[6], np.float32), (1,))[0]
        moments = numba.carray(pointer(job[7], np.float32), (N, 2))
        y = numba.carray(pointer(job[8], kind), (N, C))
        for begin in _pieces(job, ROWS, N):
            for n in range(begin, min(N, begin + ROWS)):
                moments[n, 0], moments[n, 1] = normalise(x[n], weight, bias, epsilon, y[n])

    def layer_norm_back(job):
        job = numba.carray(job, (JOB,), np.int64)
        N, C, rows = job[1], job[2], job[3]
        x = numba.carray(pointer(job[4], np.float32), (N, C))
        weight, moments = (
            numba.carray(pointer(job[5], np.float32), (C,)),
            numba.carray(pointer(job[6], np.float32), (N, 2)),
        )
        grad, to_x = numba.carray(pointer(job[7], kind), (N, C)), numba.carray(pointer(job[8], np.float32), (N, C))
        sums = numba.carray(pointer(job[9], np.float32), ((N + rows - 1) // rows, 2, C))
        for begin in _pieces(job, rows, N):
            own = sums[begin // rows]
            for n in range(begin, min(N, begin + rows)):
                _normalise_back(x[n], weight, moments[n], grad[n], to_x[n], own[0], own[1])

    def attention(job):
        job = numba.carray(job, (JOB,), np.int64)
        heads, queries, keys, first, T, dropped, seed = job[1], job[2], job[3], job[4], job[5], job[6], job[7]
        scale = np.float32(1) / np.sqrt(np.float32(job[8]))
        scores = numba.carray(pointer(job[9], kind), (heads * queries, keys))
        sums = numba.carray(pointer(job[10], np.float32), (heads, T))
        row, factors = np.empty(keys, np.float32), np.empty(keys, np.float32)
        for begin in _pieces(job, ROWS, heads * queries):
            for n in range(begin, min(heads * queries, begin + ROWS)):
                head, query = n // queries, first + n % queries
                seen, unseen = scores[n, : query + 1], scores[n, query + 1 :]
                sums[head, query] = _softmax(seen, scale, row[: query + 1])
                unseen[:] = 0
                if dropped:
                    _kept(seed + head, query * T, 1, dropped, factors[: query + 1])
                    _multiplied(seen, factors)

    def attention_back(job):
        job = numba.carray(job, (JOB,), np.int64)
        heads, keys, queries, first, T, dropped, seed = job[1], job[2], job[3], job[4], job[5], job[6], job[7]
        scale = np.float32(1) / np.sqrt(np.float32(job[8]))
        scores = numba.carray(pointer(job[9], kind), (heads * keys, queries))
        to_weights = numba.carray(pointer(job[10], kind), (heads * keys, queries))
        sums = numba.carray(pointer(job[11], np.float32), (heads, T))
        along = numba.carray(pointer(job[12], np.float32), (heads, T))
        factors = np.empty(queries, np.float32)
        for begin in _pieces(job, ROWS, heads * keys):
            for n in range(begin, min(heads * keys, begin + ROWS)):
                head, key = n // keys, n % keys
                scores[n, :key], to_weights[n, :key] = 0, 0
                seeing, to_seeing, query = scores[n, key:], to_weights[n, key:], first + key
                if dropped:
                    _kept(seed + head, query * T + query, T, dropped, factors[: len(seeing)])
                    _multiplied(to_seeing, factors)
                _softmax_back(seeing, to_seeing, scale, sums[head, query:], along[head, query:])
                if dropped:
                    _multiplied(seeing, factors)

    functions = gelu, gelu_back, layer_norm, layer_norm_back, attention, attention_back
    return {each.__name__: each for each in functions}


@cache
def function(name: str, dtype: str) -> Any:
    """A C function for "float32" or "bfloat16", compiled now; kept as kernels.py does it."""
    options: dict[str, Any] = {"error_model": "numpy"}
    signature = types.void(types.voidptr)
    source = _of({"float32": np.float32, "bfloat16": np.uint16}[dtype])[name]
    source.__qualname__ = f"{name}_{VERSION}"
    try:
        return numba.cfunc(signature, cache=True, **options)(source)
    except RuntimeError:
        return numba.cfunc(signature, **options)(source)
