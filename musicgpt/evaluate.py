"""How well ids are predicted: the loss of a model, and of trivial baselines on the same targets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from musicgpt.batches import IGNORED
from musicgpt.model import GPT
from musicgpt.shards import Shard

Window = tuple[Tensor, Tensor]
"""(1, T) ids and (1, T) targets."""

COUNTED_IDS = 20_000_000
"""Baselines are counted on at most this many training ids."""

PRIOR = 5.0
"""How many observations the unigram is worth where the bigram has its own."""


@torch.inference_mode()
def mean_loss(model: GPT, windows: Sequence[Window], autocast: torch.dtype | None = None) -> float:
    """Nats per target over all windows, each target once; the model is put back into the mode it was in."""
    was_training, device = model.training, model.wte.weight.device
    model.eval()
    total, count = 0.0, 0
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        for ids, targets in windows:
            total += float(model.loss(ids.to(device), targets.to(device), reduction="sum"))
            count += int((targets != IGNORED).sum())
    model.train(was_training)
    return total / count


def baselines(train: Shard, windows: Sequence[Window], vocab_size: int) -> dict[str, float]:
    """Nats per target of guessing by frequency alone, and by the id before.

    unigram: (count of b + 1) / (all + V). bigram: (count of a b + 5 · unigram of b) / (count of a + 5).
    """
    before = np.concatenate([ids[0].numpy() for ids, _ in windows])
    after = np.concatenate([targets[0].numpy() for _, targets in windows])
    scored = after != IGNORED
    before, after = before[scored], after[scored]
    pairs, which = np.unique(before * vocab_size + after, return_inverse=True)
    single = np.zeros(vocab_size, dtype=np.int64)
    double = np.zeros(len(pairs), dtype=np.int64)
    ids = train.ids[:COUNTED_IDS]
    chunk = 2_000_000
    for start in range(0, len(ids), chunk):  # overlapping by one, so that no pair is missed
        part = ids[start : start + chunk + 1].astype(np.int64)
        single += np.bincount(part[:chunk], minlength=vocab_size)
        keys = part[:-1] * vocab_size + part[1:]
        at = np.searchsorted(pairs, keys)
        hit = (at < len(pairs)) & (pairs[np.minimum(at, len(pairs) - 1)] == keys)
        double += np.bincount(at[hit], minlength=len(pairs))
    unigram = (single[after] + 1) / (len(ids) + vocab_size)
    bigram = (double[which] + PRIOR * unigram) / (single[before] + PRIOR)
    return {"unigram": float(-np.log(unigram).mean()), "bigram": float(-np.log(bigram).mean())}
