"""How well ids are predicted: the loss of a model, and on the same targets of baselines that only count.

Every id of a document but its BOS is scored once, EOS included. Half a context of ids stands before each one scored,
as far as the document reaches back; nothing is padded. Bits per note are comparable only where grid, velocity steps,
tracks and the number of notes are the same: they are bits for all that the tokenizer writes of a note.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from musicgpt.batches import IGNORED
from musicgpt.checkpoint import load, resolve_checkpoint
from musicgpt.config import PrepareConfig, Progress, Report, no_progress
from musicgpt.corpus import resolve_corpus
from musicgpt.errors import ShardsError
from musicgpt.model import GPT
from musicgpt.ngrams import ORDER, Ngrams
from musicgpt.prepare import prepare
from musicgpt.shards import Shard, Shards, is_shards

Window = tuple[Tensor, Tensor]
"""(1, T) ids and (1, T) targets."""

COUNTED_IDS = 20_000_000
"""Baselines are counted on about this many training ids at most, in the original keys, as validation is; it takes the
back-off model 1.4 GB of memory."""

BITS_PER = {"notes": "bits_per_note", "seconds": "bits_per_second", "bytes": "bits_per_byte"}
"""What a tokenizer measures documents in -> the key of the result."""

PRIOR = 5.0
"""How many observations the unigram is worth where the bigram has its own."""


def evaluate(
    checkpoint: str | Path,
    corpus: str | Path,
    *,
    split: str = "val",
    stride: int | None = None,
    device: str = "cpu",
    weights: str | None = None,
    report: Report,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """The losses of a checkpoint on a split of shards, or of a corpus prepared with its tokenizer.

    Keys: loss (nats per id), perplexity, tokens, split, documents; bits_per_note and bits_per_second of music,
    bits_per_byte of text, None where they do not apply. baselines: losses without a model; back_off: that of ngrams.py
    in bits also. by_folder: of each folder of the first level in the corpus ("." for files beside them) documents,
    tokens, and losses and bits of the model and of back_off; empty without folders, or where the ledger does not
    say it of each document (older shards, exercises in filling in).

    Raises:
        MusicGPTError: a checkpoint or corpus that cannot be used, shards of another tokenizer, an empty split.
    """
    model, tokenizer = load(checkpoint, device=device, weights=weights)
    directory = resolve_checkpoint(checkpoint)
    path = resolve_corpus(str(corpus), report)
    if is_shards(path):
        return _evaluate(model, tokenizer, directory, Shards(path), split, stride, progress)

    with tempfile.TemporaryDirectory(prefix="musicgpt-") as folder:
        config = PrepareConfig(tokenizer=str(directory), transpositions=1)
        # what it reports is of a folder that is gone when we return
        shards = prepare(path, Path(folder) / "shards", config, report=lambda text: None, progress=progress)
        return _evaluate(model, tokenizer, directory, shards, split, stride, progress)


def _evaluate(
    model: GPT, tokenizer: Any, directory: Path, shards: Shards, split: str, stride: int | None, progress: Progress
) -> dict[str, Any]:
    if (directory / "tokenizer.json").read_bytes() != (shards.directory / "tokenizer.json").read_bytes():
        raise ShardsError(f"{shards.directory} was prepared with another tokenizer than {directory} has")
    shard, train = shards.split(split), shards.split("train")
    said = shards.manifest["splits"][split]
    if shard.n_documents == 0:
        raise ShardsError(f"the split {split} of {shards.directory} is empty")
    documents = [shard.sequence(int(first)).astype(np.int64) for first in shard.documents[:-1]]
    n_positions, V = model.config.n_positions, tokenizer.vocab_size
    stride = stride or max(1, n_positions // 2)
    windows = [(i, window) for i, one in enumerate(documents) for window in windows_of([one], n_positions, stride)]
    scored = losses(model, progress((window for _, window in windows), len(windows), "scoring"))
    tokens = np.array([len(document) - 1 for document in documents])
    nats = np.bincount([i for i, _ in windows], weights=[nats for nats, _ in scored], minlength=len(documents))
    p = Ngrams(originals(train, COUNTED_IDS), V).probabilities(documents)
    counted = np.bincount(np.repeat(np.arange(len(documents)), tokens), weights=-np.log(p), minlength=len(documents))
    pairs = [(torch.from_numpy(d[None, :-1]), torch.from_numpy(d[None, 1:])) for d in documents]
    plain = baselines(train, pairs, V) | {"copy": copy_baseline(train, documents, V)}

    def scores(of: np.ndarray, said: dict[str, Any]) -> dict[str, Any]:
        """Of these documents, which hold so many notes, seconds or bytes."""
        count = int(tokens[of].sum())
        model, back_off = (_scores(float(one[of].sum()), count, said) for one in (nats, counted))
        return {"documents": len(of), "tokens": count, **model, "back_off": {"order": ORDER, **back_off}}

    whole = scores(np.arange(len(documents)), said)
    return {
        **whole,
        "perplexity": math.exp(min(whole["loss"], 700)),
        "split": split,
        "baselines": plain | {"back_off": whole["back_off"]["loss"]},
        "by_folder": {name: scores(of, amounts) for name, of, amounts in _folders(shards, split)},
    }


def _scores(nats: float, tokens: int, said: dict[str, Any]) -> dict[str, float | None]:
    """Loss and bits; all keys always, so that a script can rely on them."""
    bits = {key: nats / math.log(2) / said[unit] if said.get(unit) else None for unit, key in BITS_PER.items()}
    return {"loss": nats / max(1, tokens), **bits}


def _folders(shards: Shards, split: str) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Folders of the first level with documents in a split: name, numbers of the documents, and their amounts."""
    numbers: dict[str, list[int]] = defaultdict(list)
    amounts: dict[str, Counter[str]] = defaultdict(Counter)
    count = 0
    broken = (OSError, ValueError, KeyError, TypeError, AttributeError)  # a ledger is for reading, and not checked
    with suppress(*broken), open(shards.directory / "ledger.jsonl", encoding="utf-8") as lines:
        for line in map(json.loads, lines):  # in the order of the documents
            folder, inside, _ = line["path"].partition("/")
            for said in line.get("splits", []):
                if split in said:
                    numbers[folder if inside else "."].append(count)
                    amounts[folder if inside else "."].update(said[split])
                    count += 1
    if set(numbers) != {"."} and count == shards.split(split).n_documents:
        for folder, of in sorted(numbers.items()):
            yield folder, np.array(of), dict(amounts[folder])


def windows_of(documents: Sequence[np.ndarray], n_positions: int, stride: int) -> Iterator[Window]:
    """Windows over each document in which every id but the first is a target once, with as much context as fits."""
    for document in documents:
        stream = torch.from_numpy(document)
        scored = 1  # ids already targets, BOS among them
        while scored < len(stream):
            end = min(len(stream), scored + (n_positions if scored == 1 else stride))
            start = max(0, end - 1 - n_positions)
            ids, targets = stream[start : end - 1], stream[start + 1 : end].clone()
            targets[: scored - start - 1] = IGNORED
            yield ids[None], targets[None]
            scored = end


@torch.no_grad()  # and not inference_mode: what FSDP gathers in it could not be trained on
def losses(model: GPT, windows: Iterable[Window], autocast: torch.dtype | None = None) -> list[tuple[float, int]]:
    """Nats and targets of each window; the model is put back into the mode it was in."""
    was_training, device = model.training, model.wte.weight.device
    model.eval()
    found = []
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        for ids, targets in windows:
            nats = float(model.loss(ids.to(device), targets.to(device), reduction="sum"))
            found.append((nats, int((targets != IGNORED).sum())))
    model.train(was_training)
    return found


def mean_loss(model: GPT, windows: Iterable[Window], autocast: torch.dtype | None = None) -> float:
    """Nats per target over all windows, each target once."""
    scored = losses(model, windows, autocast)
    return sum(nats for nats, _ in scored) / sum(count for _, count in scored)


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
    count = 0
    for part in originals(train, COUNTED_IDS):
        count += len(part)
        single += np.bincount(part, minlength=vocab_size)
        keys = part[:-1] * vocab_size + part[1:]
        at = np.searchsorted(pairs, keys)
        hit = (at < len(pairs)) & (pairs[np.minimum(at, len(pairs) - 1)] == keys)
        double += np.bincount(at[hit], minlength=len(pairs))
    unigram = (single[after] + 1) / (count + vocab_size)
    bigram = (double[which] + PRIOR * unigram) / (single[before] + PRIOR)
    return {"unigram": float(-np.log(unigram).mean()), "bigram": float(-np.log(bigram).mean())}


def originals(shard: Shard, limit: int) -> Iterator[np.ndarray]:
    """The documents without their transpositions, from the whole split at equal distances, until `limit` ids."""
    total = int((shard.offsets[shard.documents[:-1] + 1] - shard.offsets[shard.documents[:-1]]).sum())
    step = max(1, -(-total // limit))
    for first in shard.documents[:-1:step]:
        yield shard.sequence(int(first)).astype(np.int64)


def copy_baseline(train: Shard, documents: Sequence[np.ndarray], vocab_size: int) -> float:
    """Nats per id of guessing that what followed the last two ids before will follow again.

    With probability a it is the id that came when these two last stood side by side in the document, else one by
    the unigram; a is how often that held in a million ids of training documents.
    """
    hits = [hit for part in originals(train, 1_000_000) for hit, _ in _repeats(part) if hit is not None]
    share = (sum(hits) + 1) / (len(hits) + 2)
    counts = np.ones(vocab_size)
    for part in originals(train, COUNTED_IDS):
        counts += np.bincount(part, minlength=vocab_size)
    unigram = counts / counts.sum()
    total, count = 0.0, 0
    for document in documents:
        for hit, id in _repeats(document):
            p = unigram[id] if hit is None else share * hit + (1 - share) * unigram[id]
            total -= math.log(p)
            count += 1
    return total / count


def _repeats(document: np.ndarray) -> list[tuple[bool | None, int]]:
    """For each id but the first: whether the guess holds (None without one), and the id."""
    last: dict[tuple[int, int], int] = {}
    found: list[tuple[bool | None, int]] = []
    ids = document.tolist()
    for i in range(1, len(ids)):
        key = (ids[i - 2] if i > 1 else -1, ids[i - 1])
        found.append((last[key] == ids[i] if key in last else None, ids[i]))
        last[key] = ids[i]
    return found
