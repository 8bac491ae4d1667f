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
from musicgpt.infill import frames_of
from musicgpt.shards import ids_dtype
from musicgpt.tokenizer import Tokenizer

PLAIN_ONE_IN = 5
"""Of the training documents of a style, one in so many does not say it, so that it stays optional."""

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
    style: int | None = None
    """Its id, which most training documents of the file have behind BOS."""


@dataclass(frozen=True)
class Rules:
    """What holds for every document of a corpus."""

    transpositions: int
    max_ids: int | None
    within: bool
    """Whether each document is split inside, there being too few to hold one out."""
    infill: float = 0.0
    """Ids of exercises in filling in for each id of a training document that is held whole."""
    infill_ids: int = 1024
    """The most ids of one."""
    controls: bool = False
    """Whether training documents, and the middles of exercises, have marks between their ids."""


@dataclass(frozen=True)
class Outcome:
    """What became of one document: the size of what is written of it, or why nothing is."""

    lengths: dict[str, list[int]] = field(default_factory=dict)
    """Ids in each of its sequences, by split."""
    measure: dict[str, float] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    refusal: str | None = None
    too_long: bool = False
    exercises: list[list[int]] = field(default_factory=list)
    """Ids in each of the sequences of the exercises that follow it in train, documents of their own."""


@dataclass(frozen=True)
class Encoded:
    """The ids of one document as bytes, its variants by split, with its exercises behind them, and its outcome."""

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
            yield from _encode(tokenizer, rules, document, split, job.style)
        except MusicGPTError as error:
            yield Encoded.refused(str(error))


def _encode(
    tokenizer: Tokenizer[Any], rules: Rules, document: Any, split: str, style: int | None
) -> Iterator[Encoded | None]:
    trains = split == "train" or rules.within
    variants, encoded = [document], [tokenizer.encode(document)]
    if rules.max_ids is not None and len(encoded[0]) > rules.max_ids:  # before the time for its transpositions is spent
        reason = f"{len(encoded[0]):,} ids in a document; expected at most {rules.max_ids:,} (--max-document-ids)"
        yield Encoded.refused(reason, too_long=True)
        return
    if trains:
        variants = tokenizer.variants(document, rules.transpositions)
        for other in variants[1:]:
            yield None
            encoded.append(tokenizer.encode(other))
    bos, eos = [tokenizer.bos_id], [tokenizer.eos_id]
    end = [] if bos == eos else eos  # where they are one id, the next document's BOS is the end of this one
    cuts = [int(len(ids) * TRAIN_SHARE) if rules.within else len(ids) for ids in encoded]
    parts = [ids[:cut] for ids, cut in zip(encoded, cuts, strict=True)]
    if rules.controls and trains:
        parts = [tokenizer.marked(*one) for one in zip(variants, parts, strict=True)]
    begin = bos
    if style is not None and trains and int(tokenizer.fingerprint(document), 16) % PLAIN_ONE_IN:
        begin = [*bos, style]
    if rules.within:
        lists = {"train": [begin + ids for ids in parts], "val": [bos + encoded[0][cuts[0] :] + end]}
    else:
        lists = {split: [begin + ids + end for ids in parts]}
    lengths = {name: [len(ids) for ids in sequences] for name, sequences in lists.items()}
    exercises: list[list[int]] = []
    if split == "train" and rules.infill and not rules.within:
        for made in _exercises(tokenizer, rules, variants, len(encoded[0]), begin):
            yield None
            if made:
                exercises.append([len(ids) for ids in made])
                lists["train"] += made
    dtype = ids_dtype(tokenizer.vocab_size)
    yield Encoded(
        {name: [np.array(ids, dtype=dtype).tobytes() for ids in sequences] for name, sequences in lists.items()},
        Outcome(lengths, tokenizer.measure(document), tokenizer.losses(document, encoded[0]), exercises=exercises),
    )


def _exercises(
    tokenizer: Any, rules: Rules, variants: list[Any], n_ids: int, begin: list[int]
) -> Iterator[list[list[int]]]:
    """Exercises in filling in: as many as that share of the document's ids is, each in every variant, with other holes.

    They depend on the document alone.
    """
    frames = frames_of(tokenizer)
    random = np.random.default_rng(int(tokenizer.fingerprint(variants[0]), 16))
    for _ in range(int(rules.infill * n_ids / min(n_ids, rules.infill_ids) + random.random())):
        room = rules.infill_ids - len(begin) + 1
        made = (frames.exercise(variant, room, random, controls=rules.controls) for variant in variants)
        yield [begin + ids[1:] for ids in made if ids]


def _documents(tokenizer: Tokenizer[Any], job: Job) -> list[tuple[Any, str]]:
    documents, _ = tokenizer.read(job.path)
    return [(documents[i], split) for i, split in job.wanted]


def _without_folder(error: MusicGPTError, path: Path) -> str:
    return str(error).replace(str(path), path.name)
