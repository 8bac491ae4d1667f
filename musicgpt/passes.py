"""What `prepare` asks of one file, in each of its passes: generators that a child process runs (see isolation.py).

`scan`    -> `Found`, then the keys of each document
`sample`  -> training documents to learn a vocabulary on, and how many ids each has
`encode`  -> what each of the wanted documents becomes
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from musicgpt.errors import MusicGPTError
from musicgpt.shards import ids_dtype
from musicgpt.tokenizer import Tokenizer

TRAIN_SHARE = 0.9
"""Where there are too few documents to hold one out, the beginning of each is for training."""


@dataclass(frozen=True)
class Found:
    """Why a file is refused as a whole, or what was read differently from how it is written."""

    refusal: str | None = None
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """A file by its number and path, and of which documents in it something is wanted: place and split of each."""

    file: int
    path: Path
    wanted: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Rules:
    """What holds for every document of a corpus."""

    transpositions: int
    max_ids: int | None
    within: bool
    """Whether each document is split inside, there being too few to hold one out."""


@dataclass(frozen=True)
class Outcome:
    """What became of one document: the size of what is written of it, or why nothing is."""

    lengths: dict[str, list[int]] = field(default_factory=dict)
    """Ids in each of its sequences, by split."""
    measure: dict[str, float] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    refusal: str | None = None
    too_long: bool = False


@dataclass(frozen=True)
class Encoded:
    """The ids of one document as bytes, its variants by split, and its outcome."""

    sequences: dict[str, list[bytes]]
    outcome: Outcome

    @classmethod
    def refused(cls, reason: str, *, too_long: bool = False) -> Encoded:
        return cls({}, Outcome(refusal=reason, too_long=too_long))


def scan(tokenizer: Tokenizer[Any], alike: bool, job: Job) -> Iterator[Found | list[str]]:
    """`Found`, then of each document its fingerprint and, where `alike` is asked for, the keys of its likeness."""
    try:
        documents, remarks = tokenizer.read(job.path)
    except MusicGPTError as error:
        yield Found(_without_folder(error, job.path))
        return
    yield Found(None, remarks)
    for document in documents:
        yield [tokenizer.fingerprint(document), *(tokenizer.likeness(document) if alike else ())]


def sample(tokenizer: Tokenizer[Any], rules: Rules, most: int, job: Job) -> Iterator[tuple[Any, int]]:
    """Each in one of its variants, another one from file to file, until there are `most` ids."""
    total = 0
    for document, split in _documents(tokenizer, job):
        if split == "train" or rules.within:
            variants = tokenizer.variants(document, rules.transpositions)
            variant = variants[job.file % len(variants)]
            with suppress(MusicGPTError):  # the ledger will name it
                count = len(tokenizer.encode(variant))
                yield variant, count
                total += count
        if total >= most:
            return


def encode(tokenizer: Tokenizer[Any], rules: Rules, job: Job) -> Iterator[Encoded | None]:
    try:
        documents = _documents(tokenizer, job)
    except MusicGPTError as error:  # it could be read before
        yield from (Encoded.refused(_without_folder(error, job.path)) for _ in job.wanted)
        return
    for document, split in documents:
        try:
            yield from _encode(tokenizer, rules, document, split)
        except MusicGPTError as error:
            yield Encoded.refused(str(error))


def _encode(tokenizer: Tokenizer[Any], rules: Rules, document: Any, split: str) -> Iterator[Encoded | None]:
    encoded = [tokenizer.encode(document)]
    if rules.max_ids is not None and len(encoded[0]) > rules.max_ids:  # before the time for its transpositions is spent
        reason = f"{len(encoded[0]):,} ids in a document; expected at most {rules.max_ids:,} (--max-document-ids)"
        yield Encoded.refused(reason, too_long=True)
        return
    if split == "train" or rules.within:
        for other in tokenizer.variants(document, rules.transpositions)[1:]:
            yield None
            encoded.append(tokenizer.encode(other))
    bos, eos = [tokenizer.bos_id], [tokenizer.eos_id]
    end = [] if bos == eos else eos  # where they are one id, the next document's BOS is the end of this one
    if rules.within:
        cuts = [int(len(ids) * TRAIN_SHARE) for ids in encoded]
        lists = {
            "train": [bos + ids[:cut] for ids, cut in zip(encoded, cuts, strict=True)],
            "val": [bos + encoded[0][cuts[0] :] + end],
        }
    else:
        lists = {split: [bos + ids + end for ids in encoded]}
    dtype = ids_dtype(tokenizer.vocab_size)
    yield Encoded(
        {name: [np.array(ids, dtype=dtype).tobytes() for ids in variants] for name, variants in lists.items()},
        Outcome(
            {name: [len(ids) for ids in variants] for name, variants in lists.items()},
            tokenizer.measure(document),
            tokenizer.losses(document, encoded[0]),
        ),
    )


def _documents(tokenizer: Tokenizer[Any], job: Job) -> list[tuple[Any, str]]:
    documents, _ = tokenizer.read(job.path)
    return [(documents[i], split) for i, split in job.wanted]


def _without_folder(error: MusicGPTError, path: Path) -> str:
    return str(error).replace(str(path), path.name)
