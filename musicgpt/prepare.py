"""A corpus -> shards: read, drop duplicates, split, learn a vocabulary, encode. Knows documents and ids only.

Two passes over the files. The first reads each one and keeps a hash and a few numbers of every document; then the
splits are known, and a vocabulary is learned on a sample of the training documents. The second encodes. Both run
over processes; what is written does not depend on how many.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from musicgpt.checkpoint import resolve_checkpoint
from musicgpt.config import PrepareConfig, Progress, Report, no_progress
from musicgpt.corpus import assign_splits, digest, file_name, find_files
from musicgpt.errors import CheckpointError, InputError, MusicGPTError, ShardsError, TokenizerError, UsageError
from musicgpt.files import directory_in_place, write_json
from musicgpt.shards import FORMAT, MANIFEST, SPLITS, Shards, ShardWriter, is_shards
from musicgpt.tokenizer import Tokenizer, default_name, load_tokenizer, new_tokenizer

SAMPLE_IDS = 2_000_000
"""A vocabulary is learned on whole training documents that together hold about this many ids before merging."""

TRAIN_SHARE = 0.9
"""Where there are too few documents to hold one out, the beginning of each is for training."""

FILES_PER_TASK = 16
BLOCKS_AHEAD = 32
TASKS_WORTH_PROCESSES = 8
"""Starting a process costs some seconds of imports: fewer tasks than this run in the one we are in."""

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Found:
    """What the first pass learns of one file: why it is refused, or the hash of each of its documents."""

    refusal: str | None = None
    remarks: list[str] = field(default_factory=list)
    fingerprints: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What the second pass is asked of one file: which of its documents, and the split of each."""

    path: Path
    wanted: list[tuple[int, str]]
    within: bool
    variants: int


@dataclass(frozen=True)
class Encoded:
    """What the second pass makes of one document: its variants by split, its size, and what did not fit."""

    sequences: dict[str, list[np.ndarray]] = field(default_factory=dict)
    measure: dict[str, float] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    refusal: str | None = None


def prepare(
    corpus: Path,
    out: Path,
    config: PrepareConfig,
    *,
    report: Report,
    progress: Progress = no_progress,
) -> Shards:
    """Write shards, ledger and tokenizer into `out`, or find that they are there and still right.

    Raises:
        InputError: nothing in the corpus can be used, or `out` cannot be written.
        TokenizerError: a tokenizer that is unknown or refused.
    """
    if out.resolve().is_relative_to(corpus.resolve()) and corpus.is_dir():
        raise UsageError(f"{out} is inside the corpus {corpus}, which it would become part of; choose another --out")
    files = find_files(corpus)
    if not files:
        raise InputError(f"{corpus} holds no files; expected music in it")
    tokenizer, vocab_size = make_tokenizer(config, files)
    source = _source(corpus, files, config, tokenizer, vocab_size)
    if _made_from(out, source):
        report(f"{out} was prepared before and nothing has changed")
        return Shards(out)
    with ExitStack() as stack:
        basic = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="musicgpt-")))
        beside = stack.enter_context(directory_in_place(out))
        executor = stack.enter_context(_executor(len(files), config.workers))
        tokenizer.save(basic)
        scanned = _map(executor, partial(_scan, basic, _identity(tokenizer)), files)
        found = list(progress(scanned, len(files), "reading"))
        first = _first_of_each(found)
        if not first:
            raise InputError(_nothing_usable(corpus, files, found))
        splits = assign_splits(list(first))
        within = len(first) < 3
        if within:
            report(f"too few documents ({len(first)}) to hold one out: the last tenth of each is for validation")
        jobs = []
        for n, (path, one) in enumerate(zip(files, found, strict=True)):
            wanted = [(i, splits[value]) for i, value in enumerate(one.fingerprints) if first[value] == (n, i)]
            jobs.append(Job(path, wanted, within, config.transpositions))
        if vocab_size is not None:
            tokenizer.learn(_sample(tokenizer, jobs), vocab_size)
            report(
                f"learned a vocabulary of {tokenizer.vocab_size:,} ids, on whole training documents of about "
                f"{SAMPLE_IDS:,} ids at most"
            )
        tokenizer.save(beside)
        encoded = _map(executor, partial(_encode, beside, _identity(tokenizer)), jobs)
        names = [file_name(path, corpus) for path in files]
        originals = {value: names[n] for value, (n, _) in first.items()}
        totals = _write(
            beside, tokenizer, zip(names, found, progress(encoded, len(files), "encoding"), strict=True), originals
        )
        manifest = {
            "format": FORMAT,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "split_within_documents": within,
            "splits": totals,
            "source": source,
        }
        write_json(beside / MANIFEST, manifest)
    for text in _summary(out / "ledger.jsonl", manifest):
        report(text)
    return Shards(out)


def _write(
    directory: Path,
    tokenizer: Tokenizer[Any],
    results: Iterable[tuple[str, Found, list[Encoded]]],
    originals: dict[str, str],
) -> dict[str, dict[str, float]]:
    """Ledger and ids, file by file; gives what each split holds."""
    totals = {
        split: Counter(dict.fromkeys(("documents", "sequences", "ids", "ids_of_originals", *tokenizer.units), 0.0))
        for split in SPLITS
    }
    with ExitStack() as stack:
        # a name that is not UTF-8 is written with escapes
        ledger = stack.enter_context(open(directory / "ledger.jsonl", "w", encoding="utf-8", errors="backslashreplace"))
        writers = {s: stack.enter_context(ShardWriter(directory, s, tokenizer.vocab_size)) for s in SPLITS}
        for name, found, documents in results:
            ledger.write(
                json.dumps(_ledger_line(name, found, documents, tokenizer, originals), ensure_ascii=False) + "\n"
            )
            for document in documents:
                for split, sequences in document.sequences.items():
                    writers[split].add(sequences)
                    whole = sum(len(variants[0]) for variants in document.sequences.values())
                    share = len(sequences[0]) / whole  # below 1 where the document is split inside
                    totals[split].update({unit: amount * share for unit, amount in document.measure.items()})
                    totals[split].update(
                        documents=1,
                        sequences=len(sequences),
                        ids=sum(map(len, sequences)),
                        ids_of_originals=len(sequences[0]),
                    )
    return {split: {key: _tidy(value) for key, value in total.items()} for split, total in totals.items()}


def _tidy(value: float) -> float:
    return int(value) if value == int(value) else round(value, 3)


def is_current(corpus: Path, out: Path, config: PrepareConfig) -> bool:
    """Whether `out` holds just what `prepare` would write there."""
    files = find_files(corpus)
    return _made_from(out, _source(corpus, files, config, *make_tokenizer(config, files)))


def _source(
    corpus: Path, files: Sequence[Path], config: PrepareConfig, tokenizer: Tokenizer[Any], vocab_size: int | None
) -> dict[str, Any]:
    """All that decides what the shards are, as it stands in their manifest."""
    return {
        "files": digest(files, corpus),
        "tokenizer": _identity(tokenizer),
        "vocab_size": vocab_size,
        "transpositions": config.transpositions,
    }


def _made_from(out: Path, source: dict[str, Any]) -> bool:
    if not is_shards(out):
        return False
    try:
        shards = Shards(out)
    except ShardsError:
        return False
    return bool(shards.manifest["source"] == source) and shards.whole()


def make_tokenizer(config: PrepareConfig, files: Sequence[Path]) -> tuple[Tokenizer[Any], int | None]:
    """A tokenizer by name or out of a directory, and how many ids it has to learn, if any.

    Raises:
        TokenizerError: unknown or refused, or a vocabulary asked for that is not the directory's.
    """
    name = config.tokenizer or default_name(files, config.kind)
    if not Path(name).is_dir():
        tokenizer = new_tokenizer(name)
        return tokenizer, config.vocab_size or tokenizer.default_vocab_size
    directory = Path(name)
    with suppress(CheckpointError):  # a run means its best checkpoint
        directory = resolve_checkpoint(directory)
    tokenizer = load_tokenizer(directory)
    if config.vocab_size not in (None, tokenizer.vocab_size):
        raise TokenizerError(
            f"{name} has {tokenizer.vocab_size} ids and --vocab-size asks for {config.vocab_size}: "
            f"leave --vocab-size out, or name a scheme"
        )
    return tokenizer, None


def _identity(tokenizer: Tokenizer[Any]) -> str:
    with tempfile.TemporaryDirectory(prefix="musicgpt-") as folder:
        tokenizer.save(Path(folder))
        return hashlib.sha256((Path(folder) / "tokenizer.json").read_bytes()).hexdigest()


def _executor(n_files: int, workers: int | None) -> Any:
    """Local processes, or None for the one we are in. Spawned: a fork of a process with threads may hang."""
    workers = workers or os.cpu_count() or 1
    if workers == 1 or n_files < FILES_PER_TASK * TASKS_WORTH_PROCESSES:
        return nullcontext()
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _map(executor: Executor | None, function: Callable[[list[A]], list[B]], items: Sequence[A]) -> Iterator[B]:
    """Apply `function` to the items in blocks; the results come in the order of the items."""
    blocks = (list(items[i : i + FILES_PER_TASK]) for i in range(0, len(items), FILES_PER_TASK))
    if executor is None:
        yield from chain.from_iterable(map(function, blocks))
        return
    waiting: deque[Future[list[B]]] = deque()  # so many blocks ahead, and no more in memory
    try:
        for block in blocks:
            waiting.append(executor.submit(function, block))
            if len(waiting) >= BLOCKS_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool as error:
        raise InputError(
            "a process that reads the corpus died, on a file that breaks a parser or for lack of memory; "
            "--workers 1 shows which"
        ) from error


@lru_cache(maxsize=2)
def _tokenizer_in(directory: Path, identity: str) -> Tokenizer[Any]:
    """A worker meets the same tokenizer in every task; the identity tells apart two that had one place in turn."""
    return load_tokenizer(directory)


def _scan(directory: Path, identity: str, files: list[Path]) -> list[Found]:
    tokenizer = _tokenizer_in(directory, identity)
    found = []
    for path in files:
        try:
            documents, remarks = tokenizer.read(path)
        except MusicGPTError as error:
            found.append(Found(refusal=str(error).replace(str(path), path.name)))
        else:
            found.append(Found(None, remarks, [tokenizer.fingerprint(document) for document in documents]))
    return found


def _encode(directory: Path, identity: str, jobs: list[Job]) -> list[list[Encoded]]:
    tokenizer = _tokenizer_in(directory, identity)
    return [[_encode_document(tokenizer, d, split, job) for d, split in _documents(tokenizer, job)] for job in jobs]


def _documents(tokenizer: Tokenizer[Any], job: Job) -> list[tuple[Any, str]]:
    if not job.wanted:
        return []
    documents, _ = tokenizer.read(job.path)
    return [(documents[i], split) for i, split in job.wanted]


def _encode_document(tokenizer: Tokenizer[Any], document: Any, split: str, job: Job) -> Encoded:
    bos, eos = [tokenizer.bos_id], [tokenizer.eos_id]
    end = [] if bos == eos else eos  # where they are one id, the next document's BOS is the end of this one
    variants = tokenizer.variants(document, job.variants) if split == "train" or job.within else [document]
    try:
        encoded = [tokenizer.encode(variant) for variant in variants]
    except MusicGPTError as error:
        return Encoded(refusal=str(error))
    if job.within:
        cuts = [int(len(ids) * TRAIN_SHARE) for ids in encoded]
        lists = {
            "train": [bos + ids[:cut] for ids, cut in zip(encoded, cuts, strict=True)],
            "val": [bos + encoded[0][cuts[0] :] + end],
        }
    else:
        lists = {split: [bos + ids + end for ids in encoded]}
    sequences = {name: [np.array(ids, dtype=np.uint32) for ids in variants] for name, variants in lists.items()}
    return Encoded(sequences, tokenizer.measure(document), tokenizer.losses(document, encoded[0]))


def _first_of_each(found: Sequence[Found]) -> dict[str, tuple[int, int]]:
    """Hash -> (file, document in it) of the first with that content."""
    first: dict[str, tuple[int, int]] = {}
    for n, one in enumerate(found):
        for i, value in enumerate(one.fingerprints):
            first.setdefault(value, (n, i))
    return first


def _sample(tokenizer: Tokenizer[Any], jobs: Sequence[Job]) -> Iterator[Any]:
    """Training documents in an order of their own, each in one of its variants, until `SAMPLE_IDS` are reached."""
    total = 0
    order = sorted((j for j in jobs if j.wanted), key=lambda job: hashlib.sha256(job.path.name.encode()).digest())
    for n, job in enumerate(order):
        for document, split in _documents(tokenizer, job):
            if split == "train" or job.within:
                variants = tokenizer.variants(document, job.variants)
                variant = variants[n % len(variants)]
                with suppress(MusicGPTError):  # the ledger will name it
                    total += len(tokenizer.encode(variant))
                    yield variant
        if total >= SAMPLE_IDS:
            return


def _ledger_line(
    name: str, found: Found, documents: list[Encoded], tokenizer: Tokenizer[Any], originals: dict[str, str]
) -> dict[str, Any]:
    kept = [document for document in documents if not document.refusal]
    duplicates = len(found.fingerprints) - len(documents)
    remarks = [*found.remarks, *(document.refusal for document in documents if document.refusal)]
    if found.refusal is not None:
        status, remarks = "refused", [found.refusal]
    elif kept:
        status = "kept"
        if duplicates:
            remarks.append(f"{duplicates} of {len(found.fingerprints)} documents are duplicates")
    elif documents:
        status = "refused"
    else:
        status = "duplicate"
        remarks.append(f"the same music as {originals[found.fingerprints[0]]}")
    counts = Counter(dict.fromkeys((*tokenizer.units, *tokenizer.loss_kinds), 0.0))
    for document in kept:
        counts.update(document.measure | document.losses)
    amounts = {key: _tidy(value) for key, value in counts.items()}
    return {"path": name, "status": status, "reason": "; ".join(remarks), "documents": len(kept), **amounts}


def _nothing_usable(corpus: Path, files: Sequence[Path], found: Sequence[Found]) -> str:
    refused = [(path, one.refusal) for path, one in zip(files, found, strict=True) if one.refusal]
    return f"none of the {len(files)} files in {corpus} can be used; the first: {refused[0][1]}"


def _summary(ledger: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """What a user should know of the result, in a few lines."""
    statuses: Counter[str] = Counter()
    losses: Counter[str] = Counter()
    with open(ledger, encoding="utf-8") as lines:
        for text in lines:
            line = json.loads(text)
            statuses[line["status"]] += 1
            losses.update(
                {key: value for key, value in line.items() if key.endswith(("_lost", "_clipped", "_replaced"))}
            )
    yield f"files {sum(statuses.values()):,}: " + ", ".join(f"{n:,} {status}" for status, n in statuses.most_common())
    for split, total in manifest["splits"].items():
        variants = f", with transpositions {total['ids']:,}" if total["ids"] > total["ids_of_originals"] else ""
        yield f"{split}: documents {total['documents']:,}, ids {total['ids_of_originals']:,}{variants}"
    lost = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in losses.items() if count)
    yield f"did not fit the vocabulary: {lost or 'nothing'}; every file is in {ledger}"
