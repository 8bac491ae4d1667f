"""Prompt ids -> new ids, as they are chosen. Knows ids only: no tokenizer, no music, no text.

Prefill reads the prompt once, for all samples together; extend reads the new ids. The cache holds as many positions as
the model has learned; when it is full, the newer half is read again from position 0, since learned positions cannot
slide inside a cache. Where that half begins, and what has to be said before it, a `window` decides.

A single sample may skip passes: an id that the guide leaves no choice about is not waited for, and what followed when
the last ids stood somewhere before is tried as a draft. The random number of a choice belongs to its position, so a
draft only changes what is read at once, never what is chosen. Drafts are tried where the engine gives the same logits
however many ids are read together.

With guidance G, each sample is read once more without the marks in it, in a pass of its own, as its ids are fewer, and
chosen from are the logits without + G (with - without). Source: Sanchez et al. 2023, "Stay on topic with
classifier-free guidance".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from musicgpt.drafts import Drafts
from musicgpt.engine import TorchEngine
from musicgpt.model import GPT, KVCache
from musicgpt.sampling import SamplingConfig, uniform

Window = Callable[[Sequence[int], int], tuple[int, list[int]]]
"""(ids, first) -> where a window may begin, at or after `first`, and the ids to put before it."""


class Guide(Protocol):
    """Which ids may follow; states are immutable, and what they are is the guide's own."""

    def mask(self, state: Any) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """(V,): True where an id may come next."""

    def advance(self, state: Any, id: int) -> Any:
        """The state behind an id. Its `ended` says that the sample ends there."""


@torch.inference_mode()
def generate(
    engine: TorchEngine,
    prompt: Sequence[int],
    config: SamplingConfig,
    *,
    max_new_tokens: int | None,
    seed: int,
    num_samples: int = 1,
    eos_id: int | None = None,
    n_ids: int | None = None,
    guide: Guide | None = None,
    state: Any = None,
    window: Window = lambda ids, first: (first, []),
    drafts: Drafts | None = None,
    marks: frozenset[int] = frozenset(),
) -> Iterator[tuple[list[int | None], list[Any]]]:
    """Yield an id of each sample, None for one that has ended, and the states of the guide behind them, step by step.

    A sample ends behind `eos_id`, or the id with which the guide says so; it is yielded. `state` is the guide's, behind
    the prompt; without a guide it stays what it is. `n_ids` bars the ids from there on, where a model has more than its
    tokenizer. Of a prompt longer than the context, the model sees the last window. `drafts` are tried for a single
    sample without guidance; with it `marks` are those left out, of the new ids alone. Same arguments, machine and
    threads: same ids; while functions are still compiled, but for rounding.

    Raises:
        ValueError: an empty prompt.
    """
    if not prompt:
        raise ValueError("an empty prompt; expected at least one id, such as BOS")
    guided = config.guidance != 1
    reader = _Reader(engine, prompt, num_samples, window, drafts if num_samples == 1 and not guided else None)
    unmarked = [_Reader(engine, prompt, 1, window, None) for _ in range(num_samples)] if guided else []
    states, ended = [state] * num_samples, [False] * num_samples
    position = len(prompt)
    while max_new_tokens is None or position < len(prompt) + max_new_tokens:
        allowed = None if guide is None else [guide.mask(state) for state in states]
        if num_samples == 1 and allowed is not None and np.count_nonzero(allowed[0]) == 1:
            chosen = [int(allowed[0].argmax())]
        else:
            logits = reader.logits()
            if guided:
                without = torch.cat([torch.as_tensor(each.logits()) for each in unmarked])
                logits = without + config.guidance * (torch.as_tensor(logits) - without)
            chosen = engine.choose(logits[:, :n_ids], config, uniform(seed, num_samples, position), allowed)
        new = [None if done else id for id, done in zip(chosen, ended, strict=True)]
        if guide is not None:
            states = [guide.advance(state, id) for state, id in zip(states, chosen, strict=True)]
            ended = [state.ended for state in states]
        else:
            ended = [done or id == eos_id for id, done in zip(chosen, ended, strict=True)]
        yield new, states
        position += 1
        if all(ended):
            return
        reader.add(chosen)
        for each, id in zip(unmarked, chosen, strict=False):
            if id not in marks:
                each.add([id])


class _Reader:
    """The ids of the samples so far, and how far the model has read them."""

    def __init__(
        self, engine: TorchEngine, prompt: Sequence[int], num_samples: int, window: Window, drafts: Drafts | None
    ) -> None:
        self._engine, self._window, self._drafts = engine, window, drafts
        self._rows = [list(prompt) for _ in range(num_samples)]
        self._n_positions = engine.config.n_positions
        self._unread: list[list[int]] = [[] for _ in range(num_samples)]
        self._drafted: list[int] = []
        """Ids behind those of the row, which the cache holds on trial."""
        if drafts is not None:
            drafts.add(prompt)
        cache = engine.cache(1)
        seen = list(prompt) if len(prompt) <= self._n_positions else self._context(prompt)
        logits = engine.prefill(seen, cache)
        # samples share a cache while their windows are of one length
        self._caches = [(range(num_samples), cache.repeat(num_samples) if num_samples > 1 else cache)]
        self._logits: list[Any] = [logits if num_samples == 1 else torch.as_tensor(logits).repeat(num_samples, 1)]
        """(rows, V) behind the last id, and behind each of those drafted; empty while ids are unread."""

    def add(self, chosen: list[int]) -> None:
        """The next id of each row."""
        for ids, id in zip(self._rows, chosen, strict=True):
            ids.append(id)
        del self._logits[:1]
        if self._drafts is not None:
            self._drafts.add(chosen)
            if self._drafted[:1] == chosen:
                self._drafts.right += 1
                del self._drafted[0]
                return
        for _, cache in self._caches:
            cache.length -= len(self._drafted)
        self._drafted.clear()
        self._logits.clear()
        for unread, id in zip(self._unread, chosen, strict=True):
            unread.append(id)

    def logits(self) -> Any:
        """(rows, V) behind the last ids; where they are unread, by one pass for all of them."""
        if not self._logits:
            parts = [part for members, cache in self._caches for part in self._read(members, cache)]
            self._caches = [(members, cache) for members, cache, _ in parts]
            if len(parts) > 1:
                self._logits = [torch.cat([torch.as_tensor(logits)[:, -1] for *_, logits in parts])]
            else:
                self._logits = [parts[0][2][:, i] for i in range(parts[0][2].shape[1])]
            self._unread = [[] for _ in self._rows]
        return self._logits[0]

    def _read(self, members: range, cache: KVCache) -> list[tuple[range, KVCache, Any]]:
        """Rows that share a cache, the same or each its own, and (B, kept, V) logits behind their unread ids."""
        unread = [self._unread[row] for row in members]
        room = self._n_positions - cache.length
        if len(unread[0]) > room:
            return self._read_anew(members, cache, room)
        if self._drafts is not None and self._engine.exact:
            self._drafted = self._drafts.guess(room - len(unread[0]))
            self._drafts.tried += len(self._drafted)
        ids = [row + self._drafted for row in unread]
        start = time.perf_counter()
        logits = self._engine.extend(ids, cache, 1 + len(self._drafted))
        if self._drafts is not None:
            self._drafts.took(len(ids[0]), time.perf_counter() - start)
        return [(members, cache, logits)]

    def _read_anew(self, members: range, cache: KVCache, room: int) -> list[tuple[range, KVCache, Any]]:
        """The same where the cache is full: a window is read that ends with the first id that has no room in it."""
        later = [self._unread[row][room + 1 :] for row in members]
        windows = [
            self._context(self._rows[row][: len(self._rows[row]) - len(rest)])
            for row, rest in zip(members, later, strict=True)
        ]
        together = len({len(ids) for ids in windows}) == 1
        parts = []
        for i, ids in enumerate(windows):
            own = self._engine.cache(1)
            logits = self._engine.prefill(ids, own)[:, None]
            if later[i]:  # of a single sample, behind ids that were forced; perhaps more than one window of them
                self._unread = later
                return self._read(members, own)
            parts.append((range(members[i], members[i] + 1), own, logits))
        if not together or len(parts) == 1:
            return parts
        for i, (_, own, _) in enumerate(parts):
            cache.data[:, :, i, :, : own.length] = own.data[:, :, 0, :, : own.length]
        cache.length = own.length
        return [(members, cache, torch.cat([torch.as_tensor(logits) for *_, logits in parts]))]

    def _context(self, ids: Sequence[int]) -> list[int]:
        """What of these ids is read anew: about half of the context, from where a window may begin."""
        first = len(ids) - max(1, self._n_positions // 2)
        start, header = self._window(ids, first)
        least = self._n_positions // 4
        if start - first > least or len(header) > least:  # too little would be left
            start, header = first, []
        return [*header, *ids[start:]]


@torch.inference_mode()
def log_likelihood(model: GPT, ids: Sequence[int], first: int, given: frozenset[int] = frozenset()) -> float:
    """The mean log-probability, in nats, of ids[first:] but those `given`, each with half a context before it or more.

    Where there is as much; the beginning has what there is.
    """
    n_positions = model.config.n_positions
    device = model.wpe.weight.device
    total, at = 0.0, max(1, first)
    scored = torch.tensor([id not in given for id in ids], device=device)
    while at < len(ids):
        start = max(0, at - max(1, n_positions // 2))
        end = min(len(ids), start + n_positions + 1)
        window = torch.tensor([list(ids[start:end])], device=device)
        logits = model(window[:, :-1], logits_to_keep=end - at)[0].float()
        found = logits.log_softmax(dim=-1).gather(-1, window[0, at - start :, None])[:, 0]
        total += float(found[scored[at:end]].sum())
        at = end
    return total / max(1, int(scored[max(1, first) :].sum()))
