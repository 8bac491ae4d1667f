"""A folder of generated pieces against a folder of real ones: how far what is measured of both overlaps.

Of each measure of metrics.py, by Gaussian kernel densities of Scott's bandwidth:

    overlap           ∫ min(f, g): f is the density of its values in the generated pieces, g in the real ones, both of
                      the mean of their bandwidths
    distance_overlap  ∫ min(p, q): p is the density of the distances between two real pieces, q of those between a
                      generated and a real one
    distance_kl       ∫ p ln(p / q), in nats

The last two are OA and KLD of Yang and Lerch 2020, "On the evaluation of generative models in music" (Neural Computing
and Applications 32); what a kernel puts below 0, where no distance is, is reflected here, so that equal sets overlap
wholly. They see less: pieces all alike are as far from the real ones as those are from each other. Histograms are
compared as they are, the mean of the pieces' with the mean of the others': overlap = Σ min(f, g), which is 1 - their
total variation distance.

Beside each overlap stands what the real set reaches against itself: it is parted in two at random, again and again,
and one half compared with the other. That is the ceiling, as overlaps of finite sets stay below 1: two sets of one
normal distribution overlap by 0.82 with 20 pieces each, by 0.93 with 200. The interval of the ceiling holds 95 % of the
partings. That of an overlap is 1.96 standard deviations of it in both directions, the pieces of both sets drawn again
with replacement; in trials with normal values (20 to 200 pieces, true overlaps of 0.3 to 0.8) it held the truth in 91
to 95 of 100. Everything follows from `seed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from musicgpt.config import Progress, Report, no_progress
from musicgpt.corpus import file_name, find_files, resolve_corpus
from musicgpt.errors import InputError, UsageError
from musicgpt.metrics import HISTOGRAMS, MEASURES, Measured, measured
from musicgpt.midi import SUFFIXES, read_scores
from musicgpt.render import COLOURS, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = 200
"""How often pieces are drawn again, and how often the real set is parted."""

CELLS = 256
"""Of the grid on which distributions are worked out, from the lowest value to the highest."""

SIZE = 4 * CELLS
"""Of its arrays: room for differences of either sign, and for the tails of kernels."""

PLACE = np.arange(SIZE)

FAINTEST = 1e-12
"""The least that a density is taken for in a logarithm."""

UNEQUAL = 1.5
"""Sets whose pieces differ in bars by this factor, in the median, are not compared without a word."""

Comparison = dict[str, Any]


def compare(
    generated: str | Path,
    real: str | Path,
    *,
    bars: int | None = None,
    seed: int = 0,
    report: Report,
    progress: Progress = no_progress,
) -> Comparison:
    """What is measured of two sets of pieces, each a folder, a file or a corpus by name, and how far it overlaps.

    With `bars`, the first so many bars of each piece with notes are measured and not the whole.

    Keys: bars; sets (generated, real: path, files, unreadable, shorter, bars_median, pieces with what is measured of
    each); measures and histograms, by name, with the overlaps, their intervals and the ceilings.

    Raises:
        InputError: a set without a piece that can be read.
        UsageError: `bars` below 1, or `seed` below 0.
    """
    for name, value, least in (("bars", bars, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: expected at least {least}")
    sets = {
        "generated": _read_set(generated, bars, report, progress),
        "real": _read_set(real, bars, report, progress),
    }
    length, other = (one["bars_median"] for one in sets.values())
    if bars is None and max(length, other) > UNEQUAL * min(length, other):
        report(
            f"the generated pieces have {length:g} bars in the median, the real ones {other:g}; for as much of both "
            f"say --bars {int(min(length, other))}"
        )
    generator = np.random.default_rng(seed)
    made, there = ([piece["measured"] for piece in one["pieces"]] for one in sets.values())
    return {
        "bars": bars,
        "seed": seed,
        "sets": sets,
        "measures": {name: _measure(made, there, name, generator) for name in MEASURES},
        "histograms": {name: _histogram(made, there, name, generator) for name in HISTOGRAMS},
    }


def _read_set(source: str | Path, bars: int | None, report: Report, progress: Progress) -> dict[str, Any]:
    path = resolve_corpus(str(source), report)
    files = [path] if path.is_file() else sorted(p for p in find_files(path) if p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{path} holds no music to compare; expected files in {' '.join(SUFFIXES)}")
    pieces: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for file in progress(files, len(files), f"reading {path.name}"):
        try:
            for score in read_scores(file)[0]:
                pieces.append({"path": file_name(file, path), "measured": measured(score, bars)})
        except InputError as error:
            unreadable.append(str(error))
    if not pieces:
        raise InputError(f"none of the {len(files):,} files in {path} can be read; the first: {unreadable[0]}")
    if unreadable:
        report(f"{len(unreadable):,} of {len(files):,} files in {path} left out; the first: {unreadable[0]}")
    lengths = [piece["measured"].all_bars for piece in pieces]
    return {
        "path": str(path),
        "files": len(files),
        "unreadable": unreadable,
        "shorter": 0 if bars is None else sum(length < bars for length in lengths),
        "bars_median": median(lengths),
        "pieces": pieces,
    }


def _measure(made: list[Measured], there: list[Measured], name: str, generator: np.random.Generator) -> dict[str, Any]:
    x, y = (np.array([piece.values[name] for piece in pieces]) for pieces in (made, there))
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    found = {side: _moments(values) for side, values in (("generated", x), ("real", y))}
    low, high = min([*x, *y], default=0.0), max([*x, *y], default=0.0)

    def overlaps(x: np.ndarray, y: np.ndarray, wx: np.ndarray, wy: np.ndarray) -> np.ndarray:
        hx, hy = (_binned(values, weights, low, high) for values, weights in ((x, wx), (y, wy)))
        widths = [_width(counts, PLACE, copies.sum(axis=1)) for counts, copies in ((hx, wx), (hy, wy))]
        f, g = (_smoothed(counts, np.mean(widths, axis=0)) for counts in (hx, hy))
        p, q = _of_distances(hy, hy, (wy**2).sum(axis=1)), _of_distances(hx, hy, np.zeros(len(wx)))
        kl = (p * np.log(np.maximum(p, FAINTEST) / np.maximum(q, FAINTEST))).sum(axis=1)
        return np.stack(
            [np.minimum(f, g).sum(axis=1), np.minimum(p, q).sum(axis=1), np.maximum(kl, 0)]
        )  # rounded below

    return found | _compared(("overlap", "distance_overlap", "distance_kl"), x, y, overlaps, generator)


def _histogram(
    made: list[Measured], there: list[Measured], name: str, generator: np.random.Generator
) -> dict[str, Any]:
    x, y = (
        np.array([h for piece in pieces if (h := piece.histograms[name]) is not None]).reshape(
            -1, len(HISTOGRAMS[name])
        )
        for pieces in (made, there)
    )

    def overlaps(x: np.ndarray, y: np.ndarray, wx: np.ndarray, wy: np.ndarray) -> np.ndarray:
        f, g = (copies @ rows / copies.sum(axis=1, keepdims=True) for copies, rows in ((wx, x), (wy, y)))
        overlap: np.ndarray = np.minimum(f, g).sum(axis=1)[None]
        return overlap

    found: dict[str, Any] = {"classes": list(HISTOGRAMS[name])}
    for side, rows in (("generated", x), ("real", y)):
        found[side] = {"pieces": len(rows), "shares": rows.mean(axis=0).round(6).tolist() if len(rows) else None}
    return found | _compared(("overlap",), x, y, overlaps, generator)


def _moments(values: np.ndarray) -> dict[str, Any]:
    """Mean and spread (standard deviation of the pieces)."""
    n = len(values)
    return {
        "pieces": n,
        "mean": float(values.mean()) if n else None,
        "spread": float(values.std(ddof=1)) if n > 1 else None,
    }


Overlaps = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Values of two sets, (m, …) and (n, …), and each of them in so many copies, (B, m) and (B, n) -> (figures, B)."""


def _compared(
    names: tuple[str, ...], x: np.ndarray, y: np.ndarray, overlaps: Overlaps, generator: np.random.Generator
) -> dict[str, Any]:
    """The figures of the sets, with their intervals, and of halves of the real one; None for too few pieces."""
    m, n = len(x), len(y)
    keys = [f"{kind}{name}{end}" for name in names for kind in ("", "real_") for end in ("", "_interval")]
    found: dict[str, Any] = dict.fromkeys(keys)
    if m and n > 1:
        whole = overlaps(x, y, np.ones((1, m)), np.ones((1, n)))[:, 0]
        drawn = [generator.multinomial(k, np.full(k, 1 / k), size=DRAWN).astype(float) for k in (m, n)]
        margins = 1.96 * overlaps(x, y, *drawn).std(axis=1)
        for name, value, margin in zip(names, whole.tolist(), margins.tolist(), strict=True):
            most = math.inf if name == "distance_kl" else 1.0
            found |= {name: value, f"{name}_interval": [max(0.0, value - margin), min(most, value + margin)]}
    if n > 3:
        halves = (np.argsort(generator.random((DRAWN, n)), axis=1) < n // 2).astype(float)
        for name, values in zip(names, overlaps(y, y, halves, 1 - halves), strict=True):
            interval = np.quantile(values, (0.025, 0.975)).tolist()
            found |= {f"real_{name}": float(values.mean()), f"real_{name}_interval": interval}
    return found


def _binned(values: np.ndarray, copies: np.ndarray, low: float, high: float) -> np.ndarray:
    """(N,) values, each in so many copies, (B, N) -> (B, SIZE), of which the first CELLS are from `low` to `high`."""
    cell = np.minimum((values - low) * (CELLS / max(high - low, 1e-9)), CELLS - 1).astype(np.int64)
    sums = np.zeros((SIZE, len(copies)))
    np.add.at(sums, cell, copies.T)
    return sums.T


def _of_distances(a: np.ndarray, b: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Values of two sets, (B, SIZE) each -> (B, SIZE): the density of their differences, of either sign.

    `same`: (B,) pairs of a piece with itself, which are none. A difference and its negative are one distance, so this
    is the density of distances with what lies below 0 reflected. Correlation, here by Fourier transforms, gives the
    differences of all pairs at once.
    """
    pairs = np.fft.irfft((np.fft.rfft(a) * np.fft.rfft(b).conj()).real, SIZE)
    pairs[:, 0] -= same
    total = pairs.sum(axis=1)
    distance = np.minimum(PLACE, SIZE - PLACE)
    return _smoothed(pairs, _width(pairs, distance, np.where(same > 0, total / 2, total)))


def _width(counts: np.ndarray, place: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Scott's: (B, SIZE) counts, the place of each cell and of how many observations -> (B,) in cells."""
    total = np.maximum(counts.sum(axis=1), FAINTEST)
    mean = counts @ place / total
    spread = np.sqrt(np.maximum(counts @ place**2 / total - mean**2, 0))
    width: np.ndarray = np.clip(spread * np.maximum(n, 1) ** -0.2, 0.5, CELLS / 8)  # the grid is no finer
    return width


def _smoothed(counts: np.ndarray, width: np.ndarray) -> np.ndarray:
    """(B, SIZE) counts and (B,) widths of the Gaussian -> (B, SIZE) of sum 1."""
    kernel = np.exp(-2 * (np.pi * width[:, None] * np.fft.rfftfreq(SIZE)) ** 2)
    density = np.maximum(np.fft.irfft(np.fft.rfft(counts) * kernel, SIZE), 0)
    normed: np.ndarray = density / np.maximum(density.sum(axis=1, keepdims=True), FAINTEST)
    return normed


def as_json(found: Comparison) -> Comparison:
    """With the pieces as rows of numbers, None for what a piece does not have."""
    sets = {
        side: one
        | {
            "pieces": [
                {"path": piece["path"], "bars": piece["measured"].bars}
                | {key: value if math.isfinite(value) else None for key, value in piece["measured"].values.items()}
                for piece in one["pieces"]
            ]
        }
        for side, one in found["sets"].items()
    }
    return found | {"sets": sets}


def in_words(found: Comparison) -> Iterator[str]:
    """A table, a row for each measure and histogram."""
    for side, one in found["sets"].items():
        amount = "whole" if found["bars"] is None else f"the first {found['bars']} bars, {one['shorter']:,} shorter"
        yield f"{side + ':':10} {len(one['pieces']):,} pieces ({amount}) of {one['files']:,} files in {one['path']}"
    overlaps = f"{'overlap':>8}  {'95 %':11} {'real to real':>12}  {'95 %':11} {'OA':>6} {'KL':>6}"
    yield f"{'':20} {'generated':>18} {'real':>18} {overlaps}"
    for name, row in found["measures"].items():
        sides = "".join(f" {_mean_and_spread(row[side]):>18}" for side in ("generated", "real"))
        of_distances = "" if row["distance_kl"] is None else "{distance_overlap:7.3f} {distance_kl:6.3f}".format(**row)
        yield f"{name.replace('_', ' '):20}{sides} {_overlaps(row)}{of_distances}"
    for name, row in found["histograms"].items():
        yield f"{name.replace('_', ' '):20} {'histogram':>18} {'':>18} {_overlaps(row)}".rstrip()
    yield "mean ± standard deviation of the pieces; overlap: 1 is all; real to real: what halves of the real set reach;"
    yield "-: too few pieces have it (an overlap wants two real ones, halves want four);"
    yield "OA and KL as in Yang and Lerch 2020, of the distances between real pieces and of those to generated ones"


def _mean_and_spread(side: dict[str, Any]) -> str:
    if side["mean"] is None:
        return "-"
    return f"{side['mean']:.3f}" + ("" if side["spread"] is None else f" ± {side['spread']:.3f}")


def _overlaps(row: dict[str, Any]) -> str:
    cells = []
    for name, wide in (("overlap", 8), ("real_overlap", 12)):
        value, interval = row[name], row[f"{name}_interval"]
        cells.append(f"{'-':>{wide}}  {'':11}" if value is None else f"{value:{wide}.3f}  {_span(interval):11}")
    return " ".join(cells)


def _span(interval: list[float]) -> str:
    return "{:.3f}-{:.3f}".format(*interval)


def picture(found: Comparison) -> Figure:
    """Of each measure how its values are distributed in both sets, of each histogram both; overlaps in the titles."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = 3
    rows = -(-(len(MEASURES) + len(HISTOGRAMS)) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(9, 1.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns).ravel()
        for ax in panels[len(MEASURES) + len(HISTOGRAMS) :]:
            ax.set_axis_off()
        for ax, (name, row) in zip(panels, (found["measures"] | found["histograms"]).items(), strict=False):
            against = "" if row["real_overlap"] is None else f" (real to real {row['real_overlap']:.2f})"
            overlap = "" if row["overlap"] is None else f": {row['overlap']:.2f}{against}"
            ax.set_title(name.replace("_", " ") + overlap, size=8)
            ax.set_yticks([])
            for side in ("real", "generated"):
                drawn: dict[str, Any] = {"label": side, "color": COLOURS[side == "generated"], "linewidth": 1.2}
                if side == "real":
                    drawn |= {"alpha": 0.35}
                shares = row[side].get("shares")
                if name in HISTOGRAMS and shares is not None:
                    ax.stairs(shares, np.arange(len(shares) + 1) - 0.5, fill=side == "real", **drawn)
                    every = 1 + (len(shares) > 12)
                    ax.set_xticks(range(0, len(shares), every), row["classes"][::every], size=6.5)
                elif name in MEASURES and row[side]["pieces"]:
                    of_sets = {s: _finite(one, name) for s, one in found["sets"].items()}
                    edges = np.histogram_bin_edges(np.concatenate(list(of_sets.values())), 24)
                    counts, _ = np.histogram(of_sets[side], edges)
                    ax.stairs(counts / len(of_sets[side]), edges, fill=side == "real", **drawn)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figure


def _finite(one: dict[str, Any], name: str) -> np.ndarray:
    values = np.array([piece["measured"].values[name] for piece in one["pieces"]])
    finite: np.ndarray = values[np.isfinite(values)]
    return finite
