"""Shards -> batches; a pure function of (seed, step), so resuming needs the step number and nothing else.

All training documents, shuffled anew each epoch and each in one of its variants, make one endless stream that is cut
at every T ids; the windows that begin in an epoch are visited in an order of their own, so that those of one document
do not come side by side. Nothing is padded, and a window may hold the end of one document and the beginning of the
next, with EOS and BOS between them, as in GPT-2.

A window begins where the tokenizer says that one may, at the cut or behind it, and where no such place is left in the
document, with the next. For text that is the cut itself, and every id is a target once an epoch. For music it is a bar
line: the window begins with a header that says what holds there, which is no target, and goes on for as many ids as T
leaves. So an id near a cut may be a target twice in an epoch, or not at all; the cuts fall elsewhere in the next. Where
it would take half a window to go to the next bar and say what holds there, it begins at the cut, as text does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from musicgpt.shards import Shard

IGNORED = -100
"""A target that is not scored."""

Window = Callable[[np.ndarray, int], tuple[int, list[int]]]
"""A document's ids and the earliest place -> where a window may begin, and its header: a tokenizer's `window`."""


class Batches:
    """`batches[step]` -> ids and targets of that step, each (batch_size, T) int64.

    Ids that are `unscored` are no targets: a BOS that follows an EOS is certain. Where the two are one id it is the
    end, and is scored. A document with one of `whole` behind BOS, or behind the style there, makes no sense from its
    middle on: where the cut falls into it, the window begins with it.

    Raises:
        ValueError: no ids to make windows of.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        window: Window,
        batch_size: int,
        n_positions: int,
        seed: int,
        eos_id: int,
        unscored: frozenset[int],
        whole: frozenset[int] = frozenset(),
    ) -> None:
        if shard.n_documents == 0 or len(shard.ids) < 2:
            raise ValueError("the training split is empty")
        self.shard = shard
        self.window = window
        self.batch_size = batch_size
        self.n_positions = n_positions
        self.seed = seed
        self.eos_id = eos_id
        self.unscored, self.whole = unscored, whole
        self._unscored = torch.tensor(sorted(unscored), dtype=torch.int64)
        self._epoch_starts = [0]  # position in the stream of each epoch, as far as they were needed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self.rows(step, slice(None))

    def rows(self, step: int, part: slice) -> tuple[Tensor, Tensor]:
        """Those rows of the batch of a step; nothing is read for the others."""
        T = self.n_positions
        begins = [self._begin(cut) for cut in self._cuts(step)[part]]
        windows = [np.concatenate((header, self._read(start, T + 1 - len(header)))) for start, header in begins]
        batch = torch.from_numpy(np.stack(windows))
        ids, targets = batch[:, :-1], batch[:, 1:].clone()
        for row, (_, header) in zip(targets, begins, strict=True):
            row[: max(0, len(header) - 1)] = IGNORED
        targets = targets.where(~torch.isin(targets, self._unscored), IGNORED)
        return ids.contiguous(), targets

    def epoch(self, step: int) -> float:
        """How many times the corpus has been seen when `step` begins."""
        position = step * self.batch_size * self.n_positions
        epoch = self._epoch_of(position)
        return epoch + (position - self._epoch_starts[epoch]) / len(self._plan(epoch))

    def documents(self, step: int) -> list[int]:
        """The numbers of the training documents that the windows of a step touch."""
        T = self.n_positions
        touched: set[int] = set()
        for cut in self._cuts(step):
            position, header = self._begin(cut)
            end = position + T + 1 - len(header)
            while position < end:
                epoch = self._epoch_of(position)
                plan = self._plan(epoch)
                n = plan.sequence_at(position - self._epoch_starts[epoch])
                touched.add(int(plan.order[n]))
                position = self._epoch_starts[epoch] + int(plan.ends[n])
        return sorted(touched)

    def _begin(self, cut: int) -> tuple[int, np.ndarray]:
        """A cut -> where in the stream the window begins that belongs to it, and the header before that."""
        epoch = self._epoch_of(cut)
        plan = self._plan(epoch)
        within = cut - self._epoch_starts[epoch]
        n = plan.sequence_at(within)
        sequence = self.shard.sequence(int(plan.sequences[n]))
        length = len(sequence)
        first = length - (int(plan.ends[n]) - within)
        if not self.whole.isdisjoint(sequence[1:3].tolist()):
            return cut - first, np.zeros(0, dtype=np.int64)
        if self.unscored and sequence[-1] != self.eos_id:  # a piece of music whose end is for validation
            sequence = np.append(sequence, self.eos_id)
        start, header = self.window(sequence, first) if first else (0, [])
        if start - first + len(header) > self.n_positions // 2:  # else what stands in long bars would never be learned
            start, header = first, []
        if first < start and sequence[start] == self.eos_id:  # nothing is left of this document
            start = length
        return cut + start - first, np.array(header, dtype=np.int64)

    def _cuts(self, step: int) -> list[int]:
        """Where the stream is cut for the windows of a step."""
        T = self.n_positions
        cuts = []
        for number in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch = self._epoch_of(number * T)  # as many windows are visited in it as begin in it
            first = -(-self._epoch_starts[epoch] // T)
            cuts.append((first + int(self._order(epoch)[number - first])) * T)
        return cuts

    @lru_cache(maxsize=2)  # noqa: B019 as below
    def _order(self, epoch: int) -> np.ndarray:
        """A permutation of the cuts in an epoch."""
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
    shard: Shard, *, n_positions: int, limit: int, unscored: frozenset[int]
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
        targets = targets.where(~torch.isin(targets, torch.tensor(sorted(unscored), dtype=torch.int64)), IGNORED)
        pairs.append((window[None, :-1], targets[None]))
    return pairs
