"""Guesses of the next ids from those before, prompt and output alike: ids in, ids out. Music repeats itself.

What followed when the last ids stood here before is one guess, what followed when the last but two did is another: a
note of the same length, say. Each context says what it knows, and the id is taken that the most reliable ones agree on.
What that is worth is counted as the piece goes on, so that nothing is guessed where it seldom comes true.

Source: look-up instead of a second model, Saxena 2023, "Prompt lookup decoding"; contexts that are weighed by how they
did, Mahoney 2005, "Adaptive Weighing of Context Models for Lossless Data Compression".
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

CONTEXTS = ((1,), (1, 2), (1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7, 8), (3,), (2, 3), (1, 3))
"""Which of the ids before make a context, counted from the last. An id is often one of three that make a note."""

LONGEST = max(max(context) for context in CONTEXTS)

MOST = 7
"""Ids guessed at once: with that before them, eight a pass."""

WORTH = 0.2
"""A guess is made while it is at least so likely that all so far come true, and half as likely again as one more id
in a pass costs, in passes of one id. That is measured as the piece goes on: 0.07 to 0.14 for GPT-2 in float32, more
where a pass is less bound by memory."""

SURE = 4
"""How often in a row a context was followed by the same id is counted up to this."""

MEMORY = 0.98
"""What an outcome counts for when the next of its kind is known."""


class _Share:
    """How many of the guesses of a kind came true of late; a hopeful number in the beginning."""

    __slots__ = ("all", "right")

    def __init__(self) -> None:
        self.right, self.all = 1.0, 3.0

    def add(self, is_right: bool) -> None:
        self.right = self.right * MEMORY + is_right
        self.all = self.all * MEMORY + 1


class _Guess(NamedTuple):
    id: int
    share: _Share
    """Of guesses like this one."""


class Drafts:
    """Guesses for one sequence. What they are depends on its ids, how many on what passes take as well."""

    def __init__(self) -> None:
        self.tried = self.right = 0
        """Ids guessed in passes, and those of them that were then chosen."""
        self._seconds, self._extra = 0.0, WORTH / 2
        """Of a pass for one id, and what one more costs of it: of late."""
        self._ids: list[int] = []
        self._followed: list[dict[object, tuple[int, int]]] = [{} for _ in CONTEXTS]
        """For each of CONTEXTS, what stood there -> the id behind it, and how often in a row."""
        self._shares = [[_Share() for _ in range(SURE + 1)] for _ in CONTEXTS]
        """For each of CONTEXTS, of what it said by how often in a row."""
        self._next: _Guess | None = None
        """What may come behind the last id."""
        self._together: dict[tuple[int, int], _Share] = {}
        """Of the id taken, by how much spoke for it, and how much more than for the next best."""

    def add(self, ids: Iterable[int]) -> None:
        """The ids that come next in the sequence."""
        for id in ids:
            if self._next is not None:
                self._next.share.add(self._next.id == id)
            for key, followed, shares in zip(_keys(self._ids), self._followed, self._shares, strict=False):
                before, times = followed.get(key, (id, 0))
                if times:
                    shares[times].add(before == id)
                if before == id:
                    followed[key] = (id, min(times + 1, SURE))
                else:
                    followed[key] = (before, times - 1) if times > 1 else (id, 1)
            self._ids.append(id)
            self._next = self._guess(self._ids)

    def took(self, n: int, seconds: float) -> None:
        """A pass for n ids took so long."""
        if n == 1:
            self._seconds += (seconds - self._seconds) * (0.1 if self._seconds else 1.0)
            self._extra += 0.01 * (WORTH / 2 - self._extra)  # what was dear once is tried again after a while
        elif self._seconds:
            self._extra += 0.1 * ((seconds / self._seconds - 1) / (n - 1) - self._extra)

    def guess(self, most: int) -> list[int]:
        """What may come next: no more than so many ids, and than are worth it."""
        before, share = self._ids[-LONGEST:], 1.0
        ids: list[int] = []
        guess = self._next
        while guess is not None and len(ids) < min(most, MOST):
            share *= guess.share.right / guess.share.all
            if share < max(WORTH, 1.5 * self._extra):
                break
            ids.append(guess.id)
            before.append(guess.id)
            guess = self._guess(before)
        return ids

    def _guess(self, ids: list[int]) -> _Guess | None:
        """The id for which most speaks, if a context knows one: each as -log(1 - how often it was right)."""
        speak: dict[int, float] = {}
        for key, followed, shares in zip(_keys(ids), self._followed, self._shares, strict=False):
            found = followed.get(key)
            if found is not None:
                share = shares[found[1]]
                speak[found[0]] = speak.get(found[0], 0.0) - math.log(1.01 - share.right / share.all)
        if not speak:
            return None
        id = max(speak, key=speak.__getitem__)
        most = speak.pop(id)
        ahead = most - max(speak.values(), default=0.0)
        return _Guess(id, self._together.setdefault((min(12, int(2 * most)), min(8, int(2 * ahead))), _Share()))


_PLACES = [itemgetter(*(-n for n in context)) for context in CONTEXTS]


def _keys(ids: list[int]) -> Iterable[object]:
    """What stands in each of CONTEXTS at the end of the ids; none where they are fewer than the longest."""
    return [place(ids) for place in _PLACES] if len(ids) >= LONGEST else ()
