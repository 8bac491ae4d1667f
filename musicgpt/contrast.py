"""Marks of controls learned by comparison: a batch -> the same batch, one mark of each segment saying something else.

What a mark is worth to the likelihood of the bars behind it is little beside all else there is to learn of them, so
that a model trained on the likelihood alone long goes on as if there were no marks (docs/log.md has figures). The
difference between the likelihoods of the same bars behind the true mark and behind another depends on the marks alone:

    others, segments = Contrast(tokenizer).altered(ids, seeds)
    doubts(nats, nats_of_others, segments)  # the sum over segments of -log P(the true mark | the bars, one of the two)

Source: Krause et al. 2021, "GeDi", whose discriminative loss this is, with two classes, and a segment as the sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from musicgpt.marks import CONTROLS, TRACKS


class Marked(Protocol):
    """What is asked of a tokenizer that has the marks of controls."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    def mark(self, name: str) -> int: ...


class Contrast:
    """Makes batches to compare with, of the ids of one tokenizer."""

    def __init__(self, tokenizer: Marked) -> None:
        levels = [[tokenizer.mark(name) for name in names] for names in CONTROLS.values()]
        self._count = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        """Of each id, how many levels its control has; 0 for what is no level of any."""
        self._level, self._control = self._count.copy(), self._count.copy()
        for control, ids in enumerate(levels):
            self._count[ids], self._level[ids], self._control[ids] = len(ids), np.arange(len(ids)), control
        self._mark = self._count > 0
        self._mark[[tokenizer.mark(name) for name in TRACKS]] = True
        self._ids = np.array([ids + [-1] * (self._count.max() - len(ids)) for ids in levels])
        self._bos_id = tokenizer.bos_id

    def altered(self, ids: Tensor, seeds: Iterable[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(B, T) ids, and a seed for each row -> the ids altered, and (B, T) the segment that each target is in.

        Segments count from 1 in each row; 0 is a target outside of all. Marks that stand side by side say what is in
        the segment behind them, up to the next marks or the next document; one of them, drawn at random, says another
        level of the same control, which is drawn too.
        """
        pairs = [self._row(row, np.random.default_rng(seed)) for row, seed in zip(ids.numpy(), seeds, strict=True)]
        others, segments = (torch.from_numpy(np.stack(rows)) for rows in zip(*pairs, strict=True))
        return others, F.pad(segments[:, 1:], (0, 1))  # a target is the next id; what the last is, is not known here

    def _row(self, ids: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        mark = self._mark[ids]
        segment = np.cumsum(mark & ~np.append(False, mark[:-1]))
        ended = np.maximum.accumulate(np.where(ids == self._bos_id, segment, 0))
        places = random.permutation(np.flatnonzero(self._count[ids]))
        places = places[np.unique(segment[places], return_index=True)[1]]  # one of each segment
        count, others = self._count[ids[places]], ids.copy()
        level = (self._level[ids[places]] + random.integers(1, count)) % count
        others[places] = self._ids[self._control[ids[places]], level]
        return others, np.where(mark | (segment == ended), 0, segment)


def doubts(nats: Tensor, others: Tensor, segments: Tensor) -> Tensor:
    """(B, T) nats of each target behind the true marks and behind the others -> the sum over segments, in nats.

    It is ln 2 for a segment to which the marks make no difference.
    """
    count = int(segments.max())
    margins = (others - nats).new_zeros(len(segments), count + 1).scatter_add(1, segments, others - nats)
    there = torch.arange(1, count + 1, device=segments.device) <= segments.amax(1, keepdim=True)
    return F.softplus(-margins[:, 1:])[there].sum()


def segments_in(segments: Tensor) -> int:
    return int(segments.amax(1).sum())
