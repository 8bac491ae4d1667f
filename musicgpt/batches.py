"""Shards -> batches; a pure function of (seed, step), so resuming needs the step number and nothing else.

All training documents, shuffled anew each epoch and each in one of its variants, make one endless stream that is cut
into windows of T ids; those that begin in an epoch are visited in an order of their own, so that the windows of one
document do not come side by side. Nothing is padded, every id is a target once an epoch, and a window may hold the end
of one document and the beginning of the next, with EOS and BOS between them, as in GPT-2.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from musicgpt.shards import Shard

IGNORED = -100
"""A target that is not scored."""


class Batches:
    """`batches[step]` -> ids and targets of that step, each (batch_size, T) int64.

    A BOS that follows an EOS is certain, hence no target; where the two are one id it is the end, and is scored.

    Raises:
        ValueError: no ids to make windows of.
    """

    def __init__(self, shard: Shard, *, batch_size: int, n_positions: int, seed: int, bos_id: int, eos_id: int) -> None:
        if shard.n_documents == 0 or len(shard.ids) < 2:
            raise ValueError("the training split is empty")
        self.shard = shard
        self.batch_size = batch_size
        self.n_positions = n_positions
        self.seed = seed
        self.unscored = bos_id if bos_id != eos_id else None
        self._epoch_starts = [0]  # position in the stream of each epoch, as far as they were needed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        T = self.n_positions
        windows = np.stack([self._read(start, T + 1) for start in self._starts(step)])
        batch = torch.from_numpy(windows)
        ids, targets = batch[:, :-1], batch[:, 1:]
        if self.unscored is not None:
            targets = targets.where(targets != self.unscored, IGNORED)
        return ids.contiguous(), targets.contiguous()

    def epoch(self, step: int) -> float:
        """How many times the corpus has been seen when `step` begins."""
        position = step * self.batch_size * self.n_positions
        epoch = self._epoch_of(position)
        return epoch + (position - self._epoch_starts[epoch]) / len(self._plan(epoch))

    def documents(self, step: int) -> list[int]:
        """The numbers of the training documents that the windows of a step touch."""
        T = self.n_positions
        touched: set[int] = set()
        for position in self._starts(step):
            end = position + T + 1
            while position < end:
                epoch = self._epoch_of(position)
                plan = self._plan(epoch)
                n = plan.sequence_at(position - self._epoch_starts[epoch])
                touched.add(int(plan.order[n]))
                position = self._epoch_starts[epoch] + int(plan.ends[n])
        return sorted(touched)

    def _starts(self, step: int) -> list[int]:
        """Where in the stream the windows of a step begin."""
        T = self.n_positions
        starts = []
        for number in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch = self._epoch_of(number * T)  # as many windows are visited in it as begin in it
            first = -(-self._epoch_starts[epoch] // T)
            starts.append((first + int(self._order(epoch)[number - first])) * T)
        return starts

    @lru_cache(maxsize=2)  # noqa: B019 as below
    def _order(self, epoch: int) -> np.ndarray:
        """A permutation of the windows that begin in an epoch."""
        start = self._epoch_starts[epoch]
        end = start + len(self._plan(epoch))
        count = -(-end // self.n_positions) - -(-start // self.n_positions)
        return np.random.default_rng([self.seed, epoch, 1]).permutation(count)

    def _read(self, position: int, length: int) -> np.ndarray:
        """(length,) int64 ids of the stream from `position` on."""
        parts, missing = [], length
        while missing:
            epoch = self._epoch_of(position)
            plan = self._plan(epoch)
            within = position - self._epoch_starts[epoch]
            n = plan.sequence_at(within)
            sequence = self.shard.sequence(int(plan.sequences[n]))
            part = sequence[len(sequence) - (int(plan.ends[n]) - within) :][:missing]
            parts.append(part.astype(np.int64))
            position += len(part)
            missing -= len(part)
        return np.concatenate(parts)

    def _epoch_of(self, position: int) -> int:
        while self._epoch_starts[-1] <= position:
            self._epoch_starts.append(self._epoch_starts[-1] + len(self._plan(len(self._epoch_starts) - 1)))
        return bisect_right(self._epoch_starts, position) - 1

    @lru_cache(maxsize=4)  # noqa: B019 a training has one of these, as long as it runs
    def _plan(self, epoch: int) -> _Plan:
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(self.shard.n_documents)
        firsts, ends = self.shard.documents[:-1][order], self.shard.documents[1:][order]
        sequences = firsts + (random.random(len(order)) * (ends - firsts)).astype(np.int64)
        lengths = self.shard.offsets[sequences + 1] - self.shard.offsets[sequences]
        return _Plan(order, sequences, np.cumsum(lengths))


class _Plan:
    """One epoch: the order of the documents, which sequence of each, and where each ends in the epoch."""

    def __init__(self, order: np.ndarray, sequences: np.ndarray, ends: np.ndarray) -> None:
        self.order = order
        self.sequences = sequences
        self.ends = ends

    def __len__(self) -> int:
        return int(self.ends[-1])

    def sequence_at(self, position: int) -> int:
        return int(np.searchsorted(self.ends, position, side="right"))


def windows_in_order(
    shard: Shard, *, n_positions: int, bos_id: int, eos_id: int, limit: int
) -> list[tuple[Tensor, Tensor]]:
    """The first sequence of each document, end to end, as (1, ≤ T) windows: at most about `limit` ids are scored.

    Documents are taken at equal distances, so that a limit leaves a cross-section and not a beginning.
    """
    first = shard.documents[:-1]
    share = min(1.0, limit / max(1, int((shard.offsets[first + 1] - shard.offsets[first]).sum())))
    chosen = first[np.unique(np.linspace(0, len(first) - 1, max(1, round(share * len(first)))).astype(np.int64))]
    stream = np.concatenate([shard.sequence(int(n)) for n in chosen]).astype(np.int64)[: limit + 1]
    pairs = []
    for start in range(0, len(stream) - 1, n_positions):
        window = torch.from_numpy(stream[start : start + n_positions + 1])
        targets = window[1:]
        if bos_id != eos_id:
            targets = targets.where(targets != bos_id, IGNORED)
        pairs.append((window[None, :-1], targets[None]))
    return pairs
