"""Marks of controls to compare with: ids -> the same ids, one mark of each segment saying something else.

What a mark is worth to the likelihood of the bars behind it is little beside all else there is to learn of them, and a
small model trained on the likelihood alone makes little of it (docs/log.md). How much likelier the same bars are behind
the true mark than behind another is a matter of marks alone: a second loss in training, `discriminative_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from musicgpt.marks import CONTROLS, PER_INSTRUMENT, TRACKS


class Contrast:
    """Alters the marks of one vocabulary; `there` gives the levels of a control that an instrument had in training.

    Marks that stand side by side say what is in the segment behind them, up to the next marks or the next document. One
    of them, drawn at random, says another level of the same control. Segments of which something else is said count
    from 1; 0 is what is in none of them. All of a sequence are altered: what is compared of a later one depends a
    little on the marks before, too.
    """

    def __init__(
        self, mark_ids: Mapping[str, int], bos_id: int, vocab_size: int, there: Callable[[int, str], Iterable[int]]
    ) -> None:
        self._bos_id = bos_id
        self._rank = np.full(vocab_size, -1)
        self._rank[[mark_ids[name] for name in TRACKS]] = np.arange(len(TRACKS))
        self._says = np.zeros(vocab_size, dtype=bool)
        self._levels: dict[tuple[int, int], list[int]] = {}
        """(id, rank of the instrument, -1 for all together) -> the ids of all levels that it may be."""
        for control, names in CONTROLS.items():
            ids = [mark_ids[name] for name in names]
            self._says[ids] = True
            for rank in range(len(TRACKS)) if control in PER_INSTRUMENT else [-1]:
                levels = ids if rank < 0 else [ids[level] for level in there(rank, control)]
                self._levels |= {(id, rank): levels for id in ids}
        self._together = {id for id, rank in self._levels if rank < 0}

    def __call__(self, ids: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(T,) ids -> the ids altered, and the segment that each is in."""
        mark = self._says[ids] | (self._rank[ids] >= 0)
        run = np.cumsum(mark & ~np.append(False, mark[:-1]))
        ended = np.maximum.accumulate(np.where(ids == self._bos_id, run, 0))
        tracks = np.maximum.accumulate(np.where(self._rank[ids] >= 0, np.arange(len(ids)), 0))
        made, chosen = ids.copy(), np.zeros(run[-1] + 1, dtype=np.int64)
        for place in random.permutation(np.flatnonzero(self._says[ids])).tolist():
            id = int(ids[place])
            rank = -1 if id in self._together else int(self._rank[ids[tracks[place]]])
            others = [other for other in self._levels.get((id, rank), ()) if other != id]
            if others and not chosen[run[place]]:
                made[place] = random.choice(others)
                chosen[run[place]] = 1
        return made, np.where(mark | (run == ended), 0, np.where(chosen, np.cumsum(chosen), 0)[run])
