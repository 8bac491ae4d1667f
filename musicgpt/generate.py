"""Prompt ids -> new ids, as they are chosen. Knows ids only: no tokenizer, no music, no text.

Prefill reads the prompt once, for all samples together; extend reads one id a row. The cache holds as many
positions as the model has learned; when it is full, the newer half is read again from position 0, since learned
positions cannot slide inside a cache. Where that half begins, and what has to be said before it, a `window` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from musicgpt.model import GPT, KVCache
from musicgpt.sampling import SamplingConfig, sample, uniform

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
    model: GPT,
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
) -> Iterator[tuple[list[int | None], list[Any]]]:
    """Yield an id of each sample, None for one that has ended, and the states of the guide behind them, step by step.

    A sample ends behind `eos_id`, or the id with which the guide says so; it is yielded. `state` is the guide's, behind
    the prompt; without a guide it stays what it is. `n_ids` bars the ids from there on, where a model has more than its
    tokenizer. Of a prompt longer than the context, the model sees the last window. Same arguments, machine and threads:
    same ids.

    Raises:
        ValueError: an empty prompt.
    """
    n_positions = model.config.n_positions
    if not prompt:
        raise ValueError("an empty prompt; expected at least one id, such as BOS")
    device = model.wte.weight.device
    dtype = model.wte.weight.dtype

    def context(ids: Sequence[int]) -> list[int]:
        """What of these ids is read anew: about half of the context, from where a window may begin."""
        first = len(ids) - max(1, n_positions // 2)
        start, header = window(ids, first)
        if start - first > n_positions // 4 or len(header) > n_positions // 4:  # too little would be left
            start, header = first, []
        return [*header, *ids[start:]]

    seen = list(prompt) if len(prompt) <= n_positions else context(prompt)
    rows = [list(prompt) for _ in range(num_samples)]
    states = [state] * num_samples
    cache = KVCache(model.config, 1, device=device, dtype=dtype)
    logits = model(torch.tensor([seen], device=device), cache, logits_to_keep=1)[:, -1].repeat(num_samples, 1)
    # samples share a cache while their windows are of one length
    caches = [(range(num_samples), cache.repeat(num_samples) if num_samples > 1 else cache)]
    ended = [False] * num_samples
    position = len(prompt)
    while max_new_tokens is None or position < len(prompt) + max_new_tokens:
        numbers = torch.from_numpy(uniform(seed, num_samples, position)).to(device)
        logits = logits[:, :n_ids]
        if guide is not None:
            allowed = torch.from_numpy(np.stack([guide.mask(state) for state in states])).to(device)
            logits = logits.masked_fill(~allowed, -torch.inf)
        chosen = sample(logits, config, numbers).tolist()
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
        for ids, id in zip(rows, chosen, strict=True):
            ids.append(id)
        parts: list[tuple[range, KVCache, list[list[int]]]] = []
        for members, cache in caches:
            if cache.length < n_positions:
                parts.append((members, cache, [[chosen[row]] for row in members]))
                continue
            windows = [context(rows[row]) for row in members]
            if len({len(ids) for ids in windows}) == 1:
                cache.length = 0
                parts.append((members, cache, windows))
            else:
                for row, ids in zip(members, windows, strict=True):
                    own = KVCache(model.config, 1, device=device, dtype=dtype)
                    parts.append((range(row, row + 1), own, [ids]))
        caches = [(members, cache) for members, cache, _ in parts]
        logits = torch.cat(
            [model(torch.tensor(ids, device=device), cache, logits_to_keep=1)[:, -1] for _, cache, ids in parts]
        )


@torch.inference_mode()
def log_likelihood(model: GPT, ids: Sequence[int], first: int) -> float:
    """The mean log-probability, in nats, of ids[first:], each with half a context before it where there is as much."""
    n_positions = model.config.n_positions
    device = model.wte.weight.device
    total, at = 0.0, max(1, first)
    while at < len(ids):
        start = max(0, at - max(1, n_positions // 2))
        end = min(len(ids), start + n_positions + 1)
        window = torch.tensor([list(ids[start:end])], device=device)
        logits = model(window[:, :-1], logits_to_keep=end - at)[0].float()
        total += float(logits.log_softmax(dim=-1).gather(-1, window[0, at - start :, None]).sum())
        at = end
    return total / max(1, len(ids) - max(1, first))
