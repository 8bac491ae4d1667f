"""The forward step of one or more new ids, at the speed at which a CPU reads the weights: what `generate` runs on.

Long prompts in float32 are read by torch; all else, by the functions of kernels.py, on as many threads as torch has.
Keys and values are in the same cache for both. Compiling takes some seconds once a machine; torch serves meanwhile,
with the same logits but for rounding, which with int8 weights includes that of the inputs of products.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from musicgpt import cpu_ops, int8
from musicgpt.engine import TorchEngine
from musicgpt.model import GPT, Conv1D, KVCache
from musicgpt.sampling import SamplingConfig

WIDTH = 64
"""`CpuEngine` serves widths that are a multiple of this, and heads of the next; all presets are."""

HEAD = 32

LEAST = 4
"""Fewer than the rows that kernels.py takes at once (its OUTPUTS) would be read beyond their end."""

LEAST_OUTPUTS = 16
"""Of a matrix for each thread, a guess: what more than two threads are worth was not measured."""

SHORT, PART = 64, 128
"""Longer prompts in float32 are read by torch: 1,000 ids of a model 6 x 512 take 290 ms there and 450 here on one core
of AMD's, 16 ids 10 and 2. In int8 all are read here, so many ids at a time: torch makes floats of all weights first."""

MOST_CANDIDATES = 256
"""Top-k beyond this is left to torch: candidates are kept in order by moving them."""


class Matrix(NamedTuple):
    """The same matrix of every layer."""

    weight: Any
    """(layers, out, in), float32 or int8."""
    scale: Any
    """(layers, out): what a weight is multiplied with, for float32 ones."""
    bias: Any
    """(layers, out)"""


class Weights(NamedTuple):
    """What a step reads, float32 but for the matrices."""

    wpe: Any
    """(n_positions, C)"""
    epsilon: Any
    """Of the layer norms."""
    ln_1: Any
    """(layers, 2, C): weight and bias, as `ln_2`; of `ln_f` (1, 2, C)."""
    ln_2: Any
    ln_f: Any
    attn: Matrix
    proj: Matrix
    fc: Matrix
    out: Matrix
    head: Matrix
    """Of one layer, (1, V, C), no bias; the table of embeddings as well."""


class Room(NamedTuple):
    """What a step writes on the way, for at most N positions."""

    ids: Any
    """(N,) int64, row by row."""
    x: Any
    """(N, C): the residual stream."""
    normed: Any
    """(size, C): of each thread its own, as the next two and `scores`."""
    taken: Any
    """(size, N, 4 C): inputs as products take them, float32, or int16 with int8 weights."""
    units: Any
    """(size, N): what a 1 among them is worth."""
    sums: Any
    """(N, 4 C or V): of products, before they are scaled."""
    qkv: Any
    y: Any
    hidden: Any
    """(N, 4 C)."""
    q: Any
    """(size, 4 C): of one head, as `mixed` and `scores` for four positions."""
    mixed: Any
    scores: Any
    """(size, 4, n_positions)."""
    logits: Any
    """(N, V): what comes out."""


class CpuEngine(TorchEngine):
    """A model on a CPU, in float32 or int8, whose width is a multiple of WIDTH; its matrices are laid out anew.

    The logits of an id do not depend, to the last bit, on how many ids are read with it, nor on the number of threads;
    but for those of long prompts in float32, which torch reads.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__(model)
        self._weights = _weights_of(model)
        self._kernels: ModuleType | None = None
        self._team: _Team | None = None
        self._lock = threading.Lock()
        self._compiling = threading.Thread(target=self._compile, daemon=True)
        self._compiling.start()

    @staticmethod
    def serves(model: GPT) -> bool:
        weight, config = model.wpe.weight, model.config
        head = config.n_embd // config.n_head
        fits = config.n_embd % WIDTH == head % HEAD == 0 and min(config.vocab_size, config.n_positions) >= LEAST
        return fits and weight.device.type == "cpu" and weight.dtype == torch.float32

    @property
    def exact(self) -> bool:
        return self._kernels is not None

    def ready(self, timeout: float | None = None) -> bool:
        self._compiling.join(timeout)
        return self._kernels is not None

    def _compile(self) -> None:
        try:
            from musicgpt import kernels

            numbers = np.zeros(2, dtype=np.float32)
            _Team(kernels, self._weights, size=1, most=1).step([[0]], self.cache(1), 1)
            _choose(kernels, numbers, np.ones(2, dtype=np.bool_), 0.5, SamplingConfig())
        except Exception as error:  # whatever a compiler meets on a machine we have not seen: there is torch
            warnings.warn(f"the fast functions do not compile here, torch goes on alone: {error}", stacklevel=1)
        else:
            cpu_ops.compile_for_prompts()
            self._kernels = kernels

    def cache(self, rows: int) -> KVCache:
        return KVCache(self.config, rows, device=self.device, dtype=_cached(self._weights))

    def prefill(self, ids: Sequence[int], cache: KVCache) -> Any:
        if self._kernels is None or (len(ids) > SHORT and self._weights.head.weight.dtype == np.float32):
            return super().prefill(ids, cache)
        for begin in range(0, len(ids), PART):
            logits = self.extend([ids[begin : begin + PART]], cache)
        return logits[:, 0]

    def extend(self, ids: Sequence[Sequence[int]], cache: KVCache, kept: int = 1) -> Any:
        if self._kernels is None:
            return super().extend(ids, cache, kept)
        with self._lock:
            n = len(ids) * len(ids[0])
            size = max(1, min(torch.get_num_threads(), self.config.n_embd // LEAST_OUTPUTS))
            if self._team is None or not self._team.serves(size, n):
                self._team = _Team(self._kernels, self._weights, size, most=2 * n)
            return self._team.step(ids, cache, kept)

    def choose(
        self, logits: Any, config: SamplingConfig, uniform: np.ndarray, allowed: Sequence[np.ndarray] | None
    ) -> list[int]:
        kernels = self._kernels
        if kernels is None or (config.temperature and not 0 < (config.top_k or 0) <= MOST_CANDIDATES):
            return super().choose(torch.as_tensor(logits), config, uniform, allowed)
        rows = np.asarray(logits)
        V = rows.shape[1]
        masks = [np.ones(V, dtype=np.bool_)] * len(rows) if allowed is None else allowed
        if any(len(mask) != V for mask in masks):  # what is read beyond is not ours
            raise ValueError(f"a mask of {len(masks[0])} ids does not fit logits of {V}")
        return [_choose(kernels, *each, config) for each in zip(rows, masks, uniform, strict=True)]


def _cached(weights: Weights) -> torch.dtype:
    """Of keys and values: with int8 weights, at 1,000 positions, float32 would be as much to read as all of those."""
    return torch.bfloat16 if weights.head.weight.dtype == np.int8 else torch.float32


def _choose(kernels: ModuleType, logits: Any, allowed: Any, uniform: float, config: SamplingConfig) -> int:
    top_k = config.top_k if config.temperature and config.top_k else 1
    top_p = 2.0 if config.top_p is None else config.top_p  # beyond all there is
    return int(kernels.choose(logits, allowed, float(config.temperature), top_k, top_p, config.min_p or 0.0, uniform))


class _Team:
    """The thread that calls and its helpers, and the room they work in."""

    def __init__(self, kernels: ModuleType, weights: Weights, size: int, most: int) -> None:
        most = -(-most // 4) * 4  # products take up to four rows at a time
        self._kernels, self._weights, self._size, self._most = kernels, weights, size, most
        self._process = os.getpid()
        (P, C), V = weights.wpe.shape, weights.head.weight.shape[1]
        shapes: dict[str, tuple[int, ...]] = {
            "x": (most, C),
            "normed": (size, C),
            "units": (size, most),
            "qkv": (most, 3 * C),
            "y": (most, C),
        }
        shapes |= {"hidden": (most, 4 * C), "sums": (most, max(4 * C, V)), "logits": (most, V)}
        shapes |= {"q": (size, 4 * C), "mixed": (size, 4 * C), "scores": (size, 4, P)}
        room = {name: np.zeros(shape, dtype=np.float32) for name, shape in shapes.items()}
        kind = np.int16 if weights.head.weight.dtype == np.int8 else np.float32
        taken = np.zeros((size, most, 4 * C), dtype=kind)
        self._room = Room(ids=np.zeros(most, dtype=np.int64), taken=taken, **room)
        self._job = np.zeros(8, dtype=np.int64)
        self._shared = (size, np.zeros(16, dtype=np.int64), self._job, weights, self._room)
        self._bells = [threading.Event() for _ in range(size - 1)]
        for rank, bell in enumerate(self._bells, 1):
            helping = (kernels, rank, bell, *self._shared)
            threading.Thread(target=_help, args=helping, name="musicgpt", daemon=True).start()
        weakref.finalize(self, _dismiss, kernels, self._bells, *self._shared)

    def serves(self, size: int, n: int) -> bool:
        """Whether it has so many threads, in this process (a fork leaves them behind), and room for n positions."""
        return size == self._size and n <= self._most and self._process == os.getpid()

    def step(self, ids: Sequence[Sequence[int]], cache: KVCache, kept: int) -> Any:
        """(B, T) ids -> (B, kept, V) logits."""
        B, T = len(ids), len(ids[0])
        (P, C), layers, data = self._weights.wpe.shape, len(self._weights.ln_1), cache.data
        _, _, rows, H, _, D = data.shape
        # the cache is written by its address
        fits = data.shape == (layers, 2, B, H, P, D) and H * D == C and cache.length + T <= P and 1 <= kept <= T
        if not fits or data.dtype != _cached(self._weights) or data.device.type != "cpu" or not data.is_contiguous():
            raise ValueError(f"{B} rows of {T} ids do not fit a cache of {rows} rows with {cache.length} of {P} filled")
        if any(len(row) != T for row in ids):
            raise ValueError(f"rows of {sorted({len(row) for row in ids})} ids; expected as many in each")
        flat = [id for row in ids for id in row]
        if min(flat) < 0 or max(flat) >= self._room.logits.shape[1]:  # what is read beyond is not ours
            raise ValueError(f"ids from {min(flat)} to {max(flat)}; the model has {self._room.logits.shape[1]}")
        self._room.ids[: B * T] = flat
        self._job[:] = (B, T, cache.length, kept, cache.data.data_ptr(), H, P, 0)
        _begin(self._kernels, self._bells, *self._shared)
        cache.length += T
        return self._room.logits[: B * kept].reshape(B, kept, -1).copy()  # others may step before it is read


def _help(
    kernels: ModuleType, rank: int, bell: threading.Event, size: int, sync: Any, job: Any, weights: Any, room: Any
) -> None:
    """What a helper does: its part of each step, and sleep where none comes."""
    done = 0
    while True:
        done = kernels.serve(rank, size, sync, done, job, weights, room)
        if done < 0:
            return
        bell.clear()
        # it may have rung just before it was silenced: so much later it is seen all the same
        while sync[kernels.TICKET] == done and not bell.wait(0.1):
            pass


def _begin(
    kernels: ModuleType, bells: Sequence[threading.Event], size: int, sync: Any, job: Any, weights: Any, room: Any
) -> None:
    for bell in bells:
        bell.set()
    kernels.serve(0, size, sync, 0, job, weights, room)


def _dismiss(
    kernels: ModuleType, bells: Sequence[threading.Event], size: int, sync: Any, job: Any, weights: Any, room: Any
) -> None:
    job[kernels.STOP] = 1
    _begin(kernels, bells, size, sync, job, weights, room)


def _weights_of(model: GPT) -> Weights:
    """What layers have alike lies together. The model goes on with views of the same memory, so that both see what
    becomes of a weight."""
    blocks: list[Any] = list(model.h)
    wte: Any = model.wte
    return Weights(
        wpe=_together([model.wpe.weight])[0],
        epsilon=np.float32(model.config.layer_norm_epsilon),
        ln_1=_norms([block.ln_1 for block in blocks]),
        ln_2=_norms([block.ln_2 for block in blocks]),
        ln_f=_norms([model.ln_f]),
        attn=_matrix([block.attn.c_attn for block in blocks]),
        proj=_matrix([block.attn.c_proj for block in blocks]),
        fc=_matrix([block.mlp.c_fc for block in blocks]),
        out=_matrix([block.mlp.c_proj for block in blocks]),
        head=_matrix([wte]),
    )


def _norms(modules: Sequence[Any]) -> Any:
    """(layers, 2, C)"""
    return _together([weight for norm in modules for weight in (norm.weight, norm.bias)]).reshape(len(modules), 2, -1)


def _matrix(modules: Sequence[Any]) -> Matrix:
    is_table = not isinstance(modules[0], Conv1D)  # of embeddings, the head
    if int8.is_int8(modules[0]):
        wholes, scales = zip(*map(int8.parts, modules), strict=True)
        weight, scale = _together(wholes), _together(scales)
    else:
        weight = _together([module.weight for module in modules], transposed=not is_table)
        scale = np.ones(weight.shape[:2], np.float32)
    bias = np.zeros_like(scale) if is_table else _together([module.bias for module in modules])
    return Matrix(weight, scale, bias)


def _together(weights: Sequence[Tensor], *, transposed: bool = False) -> Any:
    """One array of all, turned about if so, of which each becomes a view."""
    parts = [(weight.t() if transposed else weight).detach() for weight in weights]
    # in memory of NumPy's, which asks Linux for large pages: torch does not, and a step takes 1.05 times as long
    kind = np.int8 if parts[0].dtype == torch.int8 else np.float32
    together = torch.from_numpy(np.empty((len(parts), *parts[0].shape), kind))
    torch.stack(parts, out=together)
    for weight, place in zip(weights, together, strict=True):
        weight.data = place.t() if transposed else place
    return together.numpy()
