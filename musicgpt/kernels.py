"""One forward step of GPT-2 on the cores of a CPU, and the choice of an id behind it, compiled by numba.

NumPy arrays in, NumPy arrays out; knows neither torch nor how threads are made. `serve` is run by `size` of them at
once, each with a `rank` of its own: every product is cut into rows of the weight matrix, and `_meet` keeps them
together. A weight is read from memory once a step, which is what a step takes its time for.

With int8 weights the inputs of a product become whole numbers too, of 16 bits: a CPU multiplies and adds twice as many
of those at once. Exact sums in 32 bits leave the largest of 512 inputs 15 bits, of 2,048 inputs 13, so that a few large
ones do no harm to the others, and one scale for them all will do.

What a position gets does not depend, to the last bit, on how many positions go with it nor on how many threads there
are: each number is made by one thread, and `_added_up` adds in one order. So drafts and batches change nothing.

`matrix`, `weights` and `room` are those of cpu_engine.py.

    B rows of a batch · T new positions · N = B T · C width · H heads · D head size · V vocabulary
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

LANES, STEP = 16, 64
"""Numbers that a product takes at once, whatever the registers of the CPU hold, and in one turn of its loop: the width
has to be a multiple of the latter."""

PART = 32
"""The same for a head, whose size has to be a multiple of it."""

AHEAD = 8192
"""Bytes of weights that are asked for ahead, made up to whole tiles."""

QUERIES = 4
"""New positions of a row that attend together."""

OUTPUTS = 4
"""Rows of a weight matrix that are read side by side; threads get multiples of it."""

LINEAR, CUBIC = np.float32(1.5957691216057308), np.float32(0.07135481627159508)
"""Of u = x (LINEAR + CUBIC x^2), of which GELU's tanh form is x sigmoid(u): 2 sqrt(2 / pi), and 0.044715 times that."""

TICKET, MET = 0, 8
"""Places in `sync`, (16,) int64, a cache line apart: how many steps were announced; how often threads have met."""

STOP = 7
"""Place in `job`, (8,) int64: B, T, positions before, positions whose logits are wanted, address of the cache, H,
n_positions, and whether to stop."""

SPINS, PATIENCE = 2**10, 2**19
"""Looks at a number, with a pause behind each, before the core is offered to others, 13 microseconds on Intel's, and
before a thread goes to sleep, six milliseconds. Who offers its core while another waits is without it for milliseconds,
so that threads mostly meet before they do."""


_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

_as_written = numba.njit(**_OPTIONS)
by_vectors = numba.njit(**_OPTIONS, fastmath={"reassoc", "contract", "nsz", "arcp"})
"""Sums may be taken in another order than written; NaN and infinity stay what they are."""


def _compiled(function: Callable[..., Any]) -> Any:
    """Compiled for this CPU once, and kept in the package's folder or the user's cache; where neither can be written,
    each process compiles for itself."""
    try:
        return numba.njit(function, cache=True, **_OPTIONS)
    except RuntimeError:
        return numba.njit(function, **_OPTIONS)


# what numba has no words for

PAUSES = {"x86_64": "llvm.x86.sse2.pause", "amd64": "llvm.x86.sse2.pause"}
PAUSES |= {"aarch64": "llvm.aarch64.hint", "arm64": "llvm.aarch64.hint"}
"""LLVM's name for it, by processor; of several hints to ARM's, number 1."""

YIELD = "sched_yield"
if sys.platform == "win32":
    YIELD = "SwitchToThread"
    llvmlite.binding.add_symbol(YIELD, ctypes.cast(ctypes.windll.kernel32.SwitchToThread, ctypes.c_void_p).value)


@intrinsic
def raised(typing_context, counters, place):
    """One more at that place of an int64 array, seen by all threads -> what it is then."""

    def codegen(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        one = ir.Constant(ir.IntType(64), 1)
        before = builder.atomic_rmw("add", builder.gep(array.data, [arguments[1]]), one, "seq_cst")
        return builder.add(before, one)

    return types.int64(counters, types.int64), codegen


@intrinsic
def _seen(typing_context, counters, place):
    """What is at that place of an int64 array now, with all that was written before it got there."""

    def codegen(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.load_atomic(
            builder.gep(array.data, [arguments[1]]), ordering="seq_cst", align=8, typ=ir.IntType(64)
        )

    return types.int64(counters, types.int64), codegen


@intrinsic
def _pause(typing_context):
    """Wait a moment, 12 ns on Intel's cores, in which what shares this core has it to itself."""

    def codegen(context, builder, signature, arguments):
        name = PAUSES.get(platform.machine().lower())
        if name is not None:
            kinds = [ir.IntType(32)] if "hint" in name else []
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), name)
            builder.call(function, [ir.IntType(32)(1)] if kinds else [])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _offer_core(typing_context):
    """Let another thread run, if one waits: where there are fewer cores than threads, spinning alone would not end."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, YIELD), [])

    return types.int32(), codegen


@intrinsic
def pointer(typing_context, address, kind):
    """An address as a pointer to numbers of a kind."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(kind.dtype)(types.int64, kind), codegen


def get(array: Any, i: Any) -> Any:
    """array[i] as a float32, of float32 or of bfloat16, which is the upper half of one."""


def put(array: Any, i: Any, value: Any) -> None:
    """array[i] = value, rounded to the nearest."""


@overload(get, inline="always")
def _(array, i):
    if array.dtype == types.float32:
        return lambda array, i: array[i]
    return lambda array, i: np.uint32(np.uint32(array[i]) << np.uint32(16)).view(np.float32)


@overload(put, inline="always")
def _(array, i, value):
    def single(array, i, value):
        array[i] = value

    def half(array, i, value):
        bits = np.float32(value).view(np.uint32)
        odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
        array[i] = np.uint16(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))

    return single if array.dtype == types.float32 else half


def _cache(weight: Any, address: int, shape: tuple[int, ...]) -> Any:
    """The cache at an address: bfloat16 with int8 weights, beside which float32 would be most of what is read."""


@overload(_cache)
def _(weight, address, shape):
    if weight.dtype == types.float32:
        return lambda weight, address, shape: numba.carray(pointer(address, np.float32), shape)
    return lambda weight, address, shape: numba.carray(pointer(address, np.uint16), shape)


def _of_pairs(builder: Any, a: Any, b: Any) -> Any:
    """The sums of neighbours in two vectors, those of one behind those of the other; or in one alone, half as many."""
    ends = a.type.count if a is b else 2 * a.type.count
    lanes = ([ir.IntType(32)(i) for i in range(begin, ends, 2)] for begin in (0, 1))
    even, odd = (builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), ends // 2), i)) for i in lanes)
    return builder.fadd(even, odd) if a.type.element == ir.FloatType() else builder.add(even, odd)


def _added_up(builder: Any, vectors: list[Any]) -> Any:
    """Vectors of LANES numbers -> a vector of the sum of each. Neighbours are added, in all vectors alike, so that a
    sum does not depend on how many there are."""
    count = len(vectors)
    while len(vectors) > 1:
        vectors = [_of_pairs(builder, a, b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    (together,) = vectors
    while together.type.count > count:
        together = _of_pairs(builder, together, together)
    return together


def _floats(builder: Any, pointer: Any, count: int) -> Any:
    """So many numbers from there as a vector of float32; bfloat16 is the upper half of one."""
    kind, real = pointer.type.pointee, ir.VectorType(ir.FloatType(), count)
    place = builder.bitcast(pointer, ir.VectorType(kind, count).as_pointer())
    if kind == ir.FloatType():
        return builder.load(place, align=4)
    wide = ir.VectorType(ir.IntType(32), count)
    half = builder.zext(builder.load(place, align=2), wide)
    return builder.bitcast(builder.shl(half, ir.Constant(wide, [16] * count)), real)


def _fused(builder: Any, before: Any, a: Any, b: Any) -> Any:
    """before + a b, in one instruction."""
    return builder.fadd(before, builder.fmul(a, b, flags=["contract"]), flags=["contract"])


def _tile_of(rows: int, step: int = STEP) -> Any:
    """A function for OUTPUTS rows of a matrix, from `o`, times `rows` rows of inputs, from `r`: sums stay in registers
    until they go to out[r:, o:], float32. Both are floats, or int8 times int16 and added up in int32, for which LLVM
    finds the CPU's own instructions (vpdpwssd, vpmaddwd). Rows of weights are a multiple of STEP long, others of
    `step`."""

    @intrinsic
    def tile(typing_context, w, o, x, r, out):
        whole = w.dtype == types.int8

        def codegen(context, builder, signature, arguments):
            matrix, inputs, results = (
                context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 4)
            )
            first, first_row = arguments[1], arguments[3]
            size = builder.extract_value(matrix.shape, 1)
            number, address, real = ir.IntType(32), ir.IntType(8).as_pointer(), ir.FloatType()
            at_once = 2 * LANES if whole else LANES
            turn = at_once if whole else step  # of two at once LLVM would add the sums first: another instruction
            wide = ir.VectorType(number if whole else real, at_once)
            prefetch = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), [address, number, number, number]), "llvm.prefetch.p0"
            )

            def constant(value):
                return ir.Constant(size.type, value)

            def row(array, begin, i):
                length = builder.extract_value(array.shape, 1)
                return builder.gep(array.data, [builder.mul(builder.add(begin, constant(i)), length)])

            def load(pointer, k):
                pointer = builder.gep(pointer, [k])
                if not whole:
                    return _floats(builder, pointer, at_once)
                place = builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, at_once).as_pointer())
                return builder.sext(builder.load(place, align=1), wide)

            def more(before, ws, xs):
                if not whole:
                    return _fused(builder, before, ws, xs)
                products = builder.mul(ws, xs)
                return builder.add(before, _of_pairs(builder, products, products))

            w_rows = [row(matrix, first, i) for i in range(OUTPUTS)]
            x_rows = [row(inputs, first_row, i) for i in range(rows)]
            nothing = ir.Constant(ir.VectorType(wide.element, LANES), None)
            sums = [[cgutils.alloca_once_value(builder, nothing) for _ in w_rows] for _ in x_rows]
            in_tile = builder.mul(size, constant(OUTPUTS))
            more_tiles = builder.udiv(constant(AHEAD // (w.dtype.bitwidth // 8) - 1), in_tile)
            distance = builder.mul(in_tile, builder.add(more_tiles, constant(1)))
            with cgutils.for_range_slice(builder, constant(0), size, constant(turn), intp=size.type) as (k, _):
                for pointer in w_rows:  # what a later tile needs: rows are too short for the CPU to see it coming
                    ahead = builder.gep(pointer, [builder.add(k, distance)])
                    for line in range(0, turn, 64 if whole else 16):
                        place = builder.bitcast(builder.gep(ahead, [constant(line)]), address)
                        builder.call(prefetch, [place, number(0), number(3), number(1)])
                for at in range(0, turn, at_once):
                    here = builder.add(k, constant(at))
                    xs = [load(pointer, here) for pointer in x_rows]
                    for i, pointer in enumerate(w_rows):
                        ws = load(pointer, here)
                        for x_row, places in zip(xs, sums, strict=True):
                            builder.store(more(builder.load(places[i]), ws, x_row), places[i])
            together = _added_up(builder, [builder.load(place) for places in sums for place in places])
            if whole:
                together = builder.sitofp(together, ir.VectorType(real, together.type.count))
            for i in range(rows):
                lanes = ir.Constant(ir.VectorType(number, OUTPUTS), [number(i * OUTPUTS + n) for n in range(OUTPUTS)])
                own = builder.shuffle_vector(together, together, lanes)
                place = builder.gep(row(results, first_row, i), [first])
                builder.store(own, builder.bitcast(place, own.type.as_pointer()), align=4)
            return context.get_dummy_value()

        return types.none(w, types.intp, x, types.intp, out), codegen

    return tile


_tile_of_one, _tile_of_two, _tile_of_four = _tile_of(1), _tile_of(2), _tile_of(4)
_scores_of_one, _scores_of_four = _tile_of(1, PART), _tile_of(4, PART)


def _mix_of(rows: int) -> Any:
    """A function for the first n rows of values, (P, D), times `rows` rows of shares, (rows, P) -> out, (rows, D). Sums
    of even and of odd positions stay in registers; a position without a share changes nothing."""

    @intrinsic
    def mix(typing_context, values, n, shares, out):
        def codegen(context, builder, signature, arguments):
            rows_of, of_shares, results = (
                context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2, 3)
            )
            n = arguments[1]
            (P, D), vector = cgutils.unpack_tuple(builder, rows_of.shape), ir.VectorType(ir.FloatType(), LANES)
            number, lanes, nothing = n.type, range(0, PART, LANES), ir.Constant(vector, None)

            with cgutils.for_range_slice(builder, number(0), D, number(PART), intp=number) as (d, _):
                sums = [[[cgutils.alloca_once(builder, vector) for _ in lanes] for _ in range(rows)] for _ in range(2)]
                for place in (place for turn in sums for row in turn for place in row):
                    builder.store(nothing, place)

                def add(t, turn):
                    here = builder.add(builder.mul(t, D), d)
                    found = [builder.gep(rows_of.data, [builder.add(here, number(lane))]) for lane in lanes]
                    found = [_floats(builder, pointer, LANES) for pointer in found]
                    for i, row in enumerate(turn):
                        share = builder.load(builder.gep(of_shares.data, [builder.add(builder.mul(number(i), P), t)]))
                        first = builder.insert_element(ir.Constant(vector, ir.Undefined), share, ir.IntType(32)(0))
                        share = builder.shuffle_vector(
                            first, first, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
                        )
                        for place, some in zip(row, found, strict=True):
                            builder.store(_fused(builder, builder.load(place), share, some), place)

                pairs = builder.and_(n, number(-2))
                with cgutils.for_range_slice(builder, number(0), pairs, number(2), intp=number) as (t, _):
                    add(t, sums[0])
                    add(builder.add(t, number(1)), sums[1])
                with builder.if_then(builder.icmp_signed("<", pairs, n)):
                    add(pairs, sums[0])
                for i in range(rows):
                    for lane, even, odd in zip(lanes, sums[0][i], sums[1][i], strict=True):
                        at = builder.add(builder.add(builder.mul(number(i), D), d), number(lane))
                        place = builder.bitcast(builder.gep(results.data, [at]), vector.as_pointer())
                        builder.store(builder.fadd(builder.load(even), builder.load(odd)), place, align=4)
            return context.get_dummy_value()

        return types.none(values, types.intp, shares, out), codegen

    return mix


_mix_of_one, _mix_of_four = _mix_of(1), _mix_of(4)


# the parts of a step


@_as_written
def _meet(sync, size):
    """Wait until all threads are here."""
    arrived = raised(sync, MET)
    all_here = (arrived + size - 1) // size * size
    looks = 0
    while _seen(sync, MET) < all_here:
        looks += 1
        _pause()
        if looks % SPINS == 0:
            _offer_core()


@_as_written
def _part(n, rank, size):
    """Which of n outputs are this thread's."""
    groups = (n + OUTPUTS - 1) // OUTPUTS
    return groups * rank // size * OUTPUTS, min(n, groups * (rank + 1) // size * OUTPUTS)


@_as_written
def _finish(sums, scale, unit, bias, out, adds):
    """Sums of products -> what they are worth, with the bias: in `out`, or that much more there."""
    for o in range(out.shape[0]):
        value = sums[o] * (scale[o] * unit) + bias[o]
        out[o] = out[o] + value if adds else value


@_as_written
def _multiply(matrix, layer, room, n, out, adds, rank, size):
    """out[:n] = room.taken @ weight.T + bias of a layer, or that much more where `adds`: this thread's part of the
    outputs, from `low` to `high`."""
    weight, scale, bias = matrix.weight[layer], matrix.scale[layer], matrix.bias[layer]
    x, sums = room.taken[rank], room.sums
    low, high = _part(len(weight), rank, size)
    for begin in range(low, high, OUTPUTS):
        first = min(begin, len(weight) - OUTPUTS)  # of the last tile some outputs may be made twice, alike
        r = 0
        while n - r >= 3:  # a fourth row costs less than to read the weights twice; there is room for it
            _tile_of_four(weight, first, x, r, sums)
            r += 4
        if n - r >= 2:
            _tile_of_two(weight, first, x, r, sums)
            r += 2
        if n - r == 1:
            _tile_of_one(weight, first, x, r, sums)
    for r in range(n):
        _finish(sums[r, low:high], scale[low:high], room.units[rank, r], bias[low:high], out[r, low:high], adds)
    return low, high


@by_vectors
def normalise(x, weight, bias, epsilon, y):
    """Layer norm of one position -> its mean, and what differences from it are multiplied with."""
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
        put(y, c, (x[c] - mean) * factor * weight[c] + bias[c])
    return mean, factor


@by_vectors
def _taken(x, out):
    """(n,) float32 as products take them: as they are, or as whole numbers, the largest of which is as large as the sum
    of n products with int8 has room for -> what a 1 is worth."""
    if out.itemsize == x.itemsize:
        for c in range(x.shape[0]):
            out[c] = x[c]
        return np.float32(1)
    bits, largest = x.view(np.int32), 0
    for c in range(x.shape[0]):
        largest = max(largest, bits[c] & 0x7FFFFFFF)  # without their signs, floats are in the order of their bits
    most = min(0x7FFF, 0x7FFFFFFF // (0x7F * x.shape[0]))
    unit = max(np.int32(largest).view(np.float32), np.float32(1e-30)) / np.float32(most)
    factor = np.float32(1) / unit
    for c in range(x.shape[0]):
        out[c] = np.int16(np.rint(x[c] * factor))
    return unit


@by_vectors
def exp(x):
    """e^x of a float32 up to 88, by vectors, which the C library's is not: 2^n e^r, |r| <= ln 2 / 2, by Taylor."""
    x = max(x, np.float32(-87))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # ln 2 in two parts: n times the first is exact
    e = np.float32(1 / 5040)
    e = e * r + np.float32(1 / 720)
    e = e * r + np.float32(1 / 120)
    e = e * r + np.float32(1 / 24)
    e = e * r + np.float32(1 / 6)
    e = e * r + np.float32(0.5)
    e = e * r + np.float32(1)
    e = e * r + np.float32(1)
    return e * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@by_vectors
def gelu(x, y):
    """Into y, which may be x."""
    for c in range(x.shape[0]):
        v = get(x, c)
        u = v * (LINEAR + CUBIC * v * v)
        put(y, c, v / (np.float32(1) + exp(min(-u, np.float32(87)))))


@by_vectors
def _ordered(bits):
    """The bits of a float as a whole number, or back: larger ones stay larger, so that the largest is found by vectors,
    which NaN forbids for floats."""
    return np.int32(bits ^ (np.int32(bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@by_vectors
def softmax(x, scale):
    """(n,) float32 in place -> the logarithm of the sum."""
    bits, most = x.view(np.int32), np.int32(-(2**31))
    for c in range(x.shape[0]):
        x[c] *= scale
    for c in range(x.shape[0]):
        most = max(most, _ordered(bits[c]))
    largest = np.int32(_ordered(most)).view(np.float32)
    total = np.float32(0)
    for c in range(x.shape[0]):
        x[c] = exp(x[c] - largest)
        total += x[c]
    factor = np.float32(1) / total
    for c in range(x.shape[0]):
        x[c] *= factor
    return largest + np.log(total)


@_as_written
def _attend(q, keys, values, n, m, scores, y):
    """(4, D) queries, of which m count; the first sees n of (P, D) keys and values, each next one more -> (4, D) y.
    What one gets does not depend on m. `scores` is (4, P)."""
    P, last = keys.shape[0], n + m - 1
    for begin in range(0, last, OUTPUTS):
        t = min(begin, P - OUTPUTS)
        if m == 1:
            _scores_of_one(keys, t, q, 0, scores)
        else:
            _scores_of_four(keys, t, q, 0, scores)
    scale = np.float32(1) / np.sqrt(np.float32(q.shape[1]))
    for i in range(m):
        softmax(scores[i, : n + i], scale)
        scores[i, n + i : last] = 0
    if m == 1:
        _mix_of_one(values, last, scores, y)
    else:
        _mix_of_four(values, last, scores, y)


@_as_written
def _step(rank, size, sync, job, weights, room):
    """room.ids, (B, T) -> room.logits, (B, kept, V); keys and values go into the cache, (layers, 2, B, H, P, D)."""
    B, T, start, kept, address, H, P = job[0], job[1], job[2], job[3], job[4], job[5], job[6]
    epsilon, head = weights.epsilon, weights.head
    N, C = B * T, weights.wpe.shape[1]
    D = C // H
    layers = weights.ln_1.shape[0]
    cache = _cache(weights.attn.weight, address, (layers, 2, B, H, P, D))
    x, normed, scores = room.x, room.normed[rank], room.scores[rank]
    q, y = room.q[rank, : QUERIES * D].reshape(QUERIES, D), room.mixed[rank, : QUERIES * D].reshape(QUERIES, D)
    taken, units = room.taken[rank], room.units[rank]
    for i in range(N * rank // size, N * (rank + 1) // size):
        id, position = room.ids[i], start + i % T
        for c in range(C):
            x[i, c] = np.float32(head.weight[0, id, c]) * head.scale[0, id] + weights.wpe[position, c]
    _meet(sync, size)
    for layer in range(layers):
        for i in range(N):  # by each thread for itself: it is less work than to meet once more
            normalise(x[i], weights.ln_1[layer, 0], weights.ln_1[layer, 1], epsilon, normed)
            units[i] = _taken(normed, taken[i])
        _multiply(weights.attn, layer, room, N, room.qkv, False, rank, size)
        _meet(sync, size)
        for pair in range(B * H * rank // size, B * H * (rank + 1) // size):
            b, h = pair // H, pair % H
            keys, values = cache[layer, 0, b, h], cache[layer, 1, b, h]
            for t in range(T):
                for d in range(D):
                    put(keys, (start + t, d), room.qkv[b * T + t, C + h * D + d])
                    put(values, (start + t, d), room.qkv[b * T + t, 2 * C + h * D + d])
            for t in range(0, T, QUERIES):
                m = min(QUERIES, T - t)
                for i in range(m):
                    for d in range(D):
                        q[i, d] = room.qkv[b * T + t + i, h * D + d]
                _attend(q, keys, values, start + t + 1, m, scores, y)
                for i in range(m):
                    for d in range(D):
                        room.y[b * T + t + i, h * D + d] = y[i, d]
        _meet(sync, size)
        for i in range(N):
            units[i] = _taken(room.y[i], taken[i])
        _multiply(weights.proj, layer, room, N, x, True, rank, size)
        _meet(sync, size)
        for i in range(N):
            normalise(x[i], weights.ln_2[layer, 0], weights.ln_2[layer, 1], epsilon, normed)
            units[i] = _taken(normed, taken[i])
        low, high = _multiply(weights.fc, layer, room, N, room.hidden, False, rank, size)
        for i in range(N):
            gelu(room.hidden[i, low:high], room.hidden[i, low:high])
        _meet(sync, size)
        for i in range(N):
            units[i] = _taken(room.hidden[i], taken[i])
        _multiply(weights.out, layer, room, N, x, True, rank, size)
        _meet(sync, size)
    for b in range(B):
        for t in range(kept):
            normalise(x[b * T + T - kept + t], weights.ln_f[0, 0], weights.ln_f[0, 1], epsilon, normed)
            units[b * kept + t] = _taken(normed, taken[b * kept + t])
    _multiply(head, 0, room, B * kept, room.logits, False, rank, size)
    _meet(sync, size)


@_compiled
def serve(rank, size, sync, done, job, weights, room):
    """Thread 0 lets the others begin what `job` says, and does its part. They do theirs of all steps behind the first
    `done` -> how many there were when none came for a while, or -1 when it is time to stop."""
    if rank == 0:  # in one call: a Ctrl-C in between would leave the others waiting
        raised(sync, TICKET)
        if not job[STOP]:
            _step(rank, size, sync, job, weights, room)
        return -1
    while True:
        looks = 0
        while _seen(sync, TICKET) == done:
            looks += 1
            _pause()
            if looks > PATIENCE:
                return done
            if looks % SPINS == 0:
                _offer_core()
        if job[STOP]:
            return -1
        done += 1
        _step(rank, size, sync, job, weights, room)


@_compiled
def choose(logits, allowed, temperature, top_k, top_p, min_p, uniform):
    """(V,) logits and one number in [0, 1) -> an id, as `sampling.sample` does: see there for the meaning.

    Of equal logits the lower id comes first. `allowed` is (V,) bool.
    """
    k = min(top_k, logits.shape[0])
    values, ids = np.empty(k, np.float32), np.empty(k, np.int64)
    n = 0
    for id in range(logits.shape[0]):
        if not allowed[id] or (n == k and not logits[id] > values[k - 1]):
            continue
        place = min(n, k - 1)
        n = min(n + 1, k)
        while place > 0 and values[place - 1] < logits[id]:
            values[place], ids[place] = values[place - 1], ids[place - 1]
            place -= 1
        values[place], ids[place] = logits[id], id
    if n == 0:
        return np.int64(0)  # as argmax says where nothing is allowed
    if temperature == 0:
        return ids[0]
    shares = np.empty(n, np.float64)
    total = 0.0
    for i in range(n):
        shares[i] = np.exp((np.float64(values[i]) - np.float64(values[0])) / temperature)
        total += shares[i]
    most, before, left = shares[0] / total, 0.0, 0
    for i in range(n):
        share = shares[i] / total
        kept = before < top_p and share >= min_p * most
        before += share
        shares[i] = share if kept else 0.0
    total = 0.0
    for i in range(n):
        total += shares[i]
        left = i if shares[i] > 0 else left
    threshold, passed = uniform * total, 0.0
    for i in range(left):
        passed += shares[i]
        if passed > threshold:
            return ids[i]
    return ids[left]
