"""Prompt ids -> new ids, as they are chosen. Knows ids only: no tokenizer, no music, no text.

Prefill reads the prompt once, for all samples together; extend reads one id a row. The cache holds as many
positions as the model has learned; when it is full, its newer half is read again from position 0, since learned
positions cannot slide inside a cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from musicgpt.model import GPT, KVCache
from musicgpt.sampling import SamplingConfig, sample, uniform


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: Sequence[int],
    config: SamplingConfig,
    *,
    max_new_tokens: int,
    seed: int,
    num_samples: int = 1,
    eos_id: int | None = None,
    n_ids: int | None = None,
) -> Iterator[list[int | None]]:
    """Yield the ids of the samples, one list of `num_samples` a step; None for a sample that has ended.

    A sample ends behind `eos_id`, which is yielded. `n_ids` bars the ids from there on, where a model has more
    than its tokenizer. Same arguments, machine and threads: same ids.

    Raises:
        ValueError: a prompt that is empty or longer than the model's context.
    """
    n_positions = model.config.n_positions
    if not 0 < len(prompt) <= n_positions:
        raise ValueError(f"a prompt of {len(prompt)} ids; expected 1 to {n_positions}")
    device = model.wte.weight.device
    dtype = model.wte.weight.dtype
    history = torch.tensor([list(prompt)], device=device).repeat(num_samples, 1)  # (B, T), as far as it is needed
    cache = KVCache(model.config, 1, device=device, dtype=dtype)
    logits = model(history[:1], cache, logits_to_keep=1)[:, -1].repeat(num_samples, 1)
    cache = cache.repeat(num_samples) if num_samples > 1 else cache
    ended = [False] * num_samples
    for position in range(len(prompt), len(prompt) + max_new_tokens):
        numbers = torch.from_numpy(uniform(seed, num_samples, position)).to(device)
        ids = sample(logits[:, :n_ids], config, numbers)  # (B,)
        chosen = ids.tolist()
        yield [None if done else id for id, done in zip(chosen, ended, strict=True)]
        ended = [done or id == eos_id for id, done in zip(chosen, ended, strict=True)]
        if all(ended) or position + 1 == len(prompt) + max_new_tokens:
            return
        history = torch.cat((history[:, -n_positions:], ids[:, None]), dim=1)
        new = ids[:, None]
        if cache.length == n_positions:
            cache.length = 0
            new = history[:, -max(1, n_positions // 2) :]
        logits = model(new, cache, logits_to_keep=1)[:, -1]
