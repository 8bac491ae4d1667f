"""Guesses of the next ids from those before, prompt and output alike: ids in, ids out. Music repeats itself.

The guess is what followed the last ids where they stood before: the last eight if they did, else the last four, two or
one. What a guess is worth is counted as the piece goes on, so that nothing is guessed where it seldom comes true.

Source: look-up instead of a second model, Saxena 2023, "Prompt lookup decoding"; backing off to shorter contexts,
Cleary and Witten 1984, "Data compression using adaptive coding and partial string matching".
"""

from __future__ import annotations

from collections.abc import Iterable

ORDERS = (8, 4, 2, 1)
"""How many ids make a context, the first that is known."""

MOST = 7
"""Ids guessed at once: with that before them, eight a pass."""

WORTH = 0.25
"""A guess is made while it is at least so likely that all so far come true, or half as likely again as one more id in a
pass costs, in passes of one id. That is measured as the piece goes on: 0.07 to 0.14 for GPT-2 in float32, more where a
pass is less bound by memory."""

SURE = 4
"""How often in a row a context was followed by the same id is counted up to this."""

MEMORY = 0.98
"""What an outcome counts for when the next of its kind is known."""


class Drafts:
    """Guesses for one sequence. What they are depends on its ids, how many on what passes take as well."""

    def __init__(self) -> None:
        self.tried = self.right = 0
        """Ids guessed in passes, and those of them that were then chosen."""
        self._seconds, self._extra = 0.0, WORTH / 2
        """Of a pass for one id, and what one more costs of it: of late."""
        self._ids: list[int] = []
        self._followed: dict[tuple[int, ...], tuple[int, int]] = {}
        """A context -> the id behind it, and how often in a row."""
        self._outcomes: dict[tuple[int, int], tuple[float, float]] = {}
        """(length of the context, how often in a row) -> guesses that came true, and all; a hopeful one in the
        beginning."""

    def add(self, ids: Iterable[int]) -> None:
        """The ids that come next in the sequence."""
        for id in ids:
            guess = self._guess(self._ids)
            if guess is not None:
                right, all = self._outcomes.get(guess[1], (1.0, 4.0))
                self._outcomes[guess[1]] = (right * MEMORY + (guess[0] == id), all * MEMORY + 1)
            for n in ORDERS:
                if n <= len(self._ids):
                    context = tuple(self._ids[-n:])
                    before, times = self._followed.get(context, (id, 0))
                    if before == id:
                        self._followed[context] = (id, min(times + 1, SURE))
                    else:
                        self._followed[context] = (before, times - 1) if times > 1 else (id, 1)
            self._ids.append(id)

    def took(self, n: int, seconds: float) -> None:
        """A pass for n ids took so long."""
        if n == 1:
            self._seconds += (seconds - self._seconds) * (0.1 if self._seconds else 1.0)
            self._extra += 0.01 * (WORTH / 2 - self._extra)  # what was dear once is tried again after a while
        elif self._seconds:
            self._extra += 0.1 * ((seconds / self._seconds - 1) / (n - 1) - self._extra)

    def guess(self, most: int) -> list[int]:
        """What may come next: no more than so many ids, and than are worth it."""
        context, share = self._ids[-ORDERS[0] :], 1.0
        ids: list[int] = []
        while len(ids) < min(most, MOST):
            guess = self._guess(context)
            if guess is None:
                break
            right, all = self._outcomes.get(guess[1], (1.0, 4.0))
            share *= right / all
            if share < max(WORTH, 1.5 * self._extra):
                break
            ids.append(guess[0])
            context = [*context, guess[0]][-ORDERS[0] :]
        return ids

    def _guess(self, ids: list[int]) -> tuple[int, tuple[int, int]] | None:
        """An id, and which kind of guess it is."""
        for n in ORDERS:
            found = self._followed.get(tuple(ids[-n:])) if n <= len(ids) else None
            if found is not None:
                return found[0], (n, found[1])
        return None
