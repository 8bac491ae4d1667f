"""A corpus -> shards: read, drop duplicates, split, learn a vocabulary, encode. Knows documents and ids only.

Two passes over the files. The first reads each one and keeps the hash of every document; then the splits are known,
and a vocabulary is learned on a sample of the training documents. The second encodes. Both run over any executor of
concurrent.futures, in processes that are watched (isolation.py); what is written does not depend on how many.

What is known stands in a journal beside `out`, with the ids written so far. A `prepare` that was killed goes on from
there, if it is asked for the same of the same files; asked for another thing, it begins anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

import numpy as np

from musicgpt.config import PrepareConfig, Progress, Report, no_progress, resolve_boxed
from musicgpt.corpus import file_name, find_files, split_of, style_of, styles_of, survey
from musicgpt.errors import CheckpointError, InputError, MusicGPTError, ShardsError, TokenizerError, UsageError
from musicgpt.files import locked, put_in_place, read_json, write_json
from musicgpt.isolation import Failure, Limits, Pool
from musicgpt.journal import Document, Journal
from musicgpt.marks import CONTROL_MARKS, FILL, STYLE, TRACKS
from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.passes import Encoded, Found, Job, Outcome, Rules, encode, sample, scan
from musicgpt.shards import FORMAT, MANIFEST, PARTS, SPLITS, IndexWriter, Shards, checksums, ids_dtype, is_shards
from musicgpt.tokenizer import Tokenizer, default_name, load_tokenizer, new_tokenizer

SAMPLE_IDS = 2_000_000
"""A vocabulary is learned on whole training documents that together hold about this many ids before merging."""

FILES_WORTH_A_PROCESS = 64
"""Starting a process costs some seconds of imports."""

FILES = {"ledger.jsonl", "tokenizer.json", "tokenizer_config.json", "controls.json", MANIFEST} | {
    f"{split}.{part}" for split in SPLITS for part in PARTS
}
"""All that is ever written into shards, so that nothing else is replaced by them."""

COMMIT_SECONDS = 1.0
"""So much work is done again after a kill, with what was under way."""

CONNECT_SECONDS = 10


def prepare(
    corpus: Path,
    out: Path,
    config: PrepareConfig,
    *,
    tokenizer: Tokenizer[Any] | None = None,
    executor: Executor | None = None,
    replace: bool = True,
    report: Report,
    progress: Progress = no_progress,
) -> Shards:
    """Write shards, ledger and tokenizer into `out`, or find that they are there and still right.

    A `tokenizer` goes before the one that `config` names; its class is importable where the work is done. An
    `executor` takes the place of local processes; each of its workers sees the corpus at the same path, and
    `config.workers` says how many there are.

    Raises:
        UsageError: what is in `out` is something else, and not to be replaced.
        InputError: nothing in the corpus can be used, or `out` cannot be written or is being written by another.
        TokenizerError: a tokenizer that is unknown or refused.
    """
    if corpus.is_dir() and out.resolve().is_relative_to(corpus.resolve()):
        raise UsageError(f"{out} is inside the corpus {corpus}, which it would become part of; choose another --out")
    out = out if out.name.strip(".") else out.resolve()  # which has a name, for what stands beside it
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; expected a folder, or nothing yet")
    found = survey(corpus)
    if not found.count:
        raise InputError(f"{corpus} holds no files; expected music in it")
    styles = styles_of(corpus) if config.styles else []
    tokenizer, vocab_size = make_tokenizer(config, found.suffixes, tokenizer, styles)
    if config.dedupe == "transposed" and not tokenizer.compares:
        raise UsageError("--dedupe transposed compares music; of text only exact copies are known: leave it out")
    max_ids = config.max_document_ids or tokenizer.max_document_ids
    source = _source(found.digest, tokenizer, vocab_size, max_ids, config)
    folder = out.with_name(f".{out.name}.musicgpt-prepare")
    if (shards := _made_from(out, source)) is not None:
        if folder.exists():  # the last one died just before it removed it
            with locked(out):
                shutil.rmtree(folder)
        report(f"{out} was prepared before and nothing has changed")
        return shards
    _refuse_to_replace(out, replace)
    if unsaid := _unsaid(tokenizer, config):
        report(f"the vocabulary has marks that are not written without {unsaid}: a model forgets what it does not see")
    with locked(out), _stopped(out), ExitStack() as stack:
        pool = stack.enter_context(_pool(executor, config, found.count))
        journal = stack.enter_context(_opened(folder, source, corpus, report))
        work = Preparation(corpus.absolute(), folder / "shards", journal, pool, report, progress)
        try:
            manifest = work.make(config, tokenizer, vocab_size, max_ids, styles) | {"source": source}
            if not any(total["ids"] for total in manifest["splits"].values()):
                raise InputError(f"no document of {corpus} could be encoded within --max-document-ids {max_ids}")
        except MusicGPTError as error:
            if error.__cause__ is None:  # nor the disk, nor a process that did not start: the same would end the same
                stack.close()
                shutil.rmtree(folder)
            raise
        write_json(work.folder / MANIFEST, manifest)
        put_in_place(work.folder, out)
        stack.close()
        shutil.rmtree(folder)
    for text in _summary(out / "ledger.jsonl", manifest):
        report(text)
    return Shards(out)


class Preparation:
    """The steps, in their order. Each does what is left of it, so that all are simply run again after a kill."""

    def __init__(
        self, corpus: Path, folder: Path, journal: Journal, pool: Pool, report: Report, progress: Progress
    ) -> None:
        self.corpus, self.folder, self.journal, self.pool = corpus, folder, journal, pool
        self.report, self.progress = report, progress
        self._committed = time.monotonic()

    def make(
        self,
        config: PrepareConfig,
        tokenizer: Tokenizer[Any],
        vocab_size: int | None,
        max_ids: int | None,
        styles: Sequence[str],
    ) -> dict[str, Any]:
        """All of the shards but their manifest; gives what that says of them."""
        self.read(tokenizer, alike=config.dedupe == "transposed")
        rules = Rules(config.transpositions, max_ids, self.split(), config.infill, config.infill_ids, config.controls)
        if config.infill and rules.within:
            raise InputError("--infill: of fewer than three pieces no exercises are made; leave it out")
        if vocab_size is not None or not tokenizer.complete:
            tokenizer = self.learn(tokenizer, rules, vocab_size)
        self.encode(tokenizer, rules, styled=config.styles)
        splits = self.write_index(tokenizer)
        tokenizer.save(self.folder)
        return {
            "format": FORMAT,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "split_within_documents": rules.within,
            "splits": splits,
            **({"styles": self.count_styles(styles)} if styles else {}),
            "checksums": checksums(self.folder),
        }

    def read(self, tokenizer: Tokenizer[Any], *, alike: bool) -> None:
        """Keep of each file why it is refused, or the fingerprints and keys of its documents."""
        jobs = (Job(file, self._path(name)) for file, name in self.journal.unread())
        results = self.pool.map(partial(scan, tokenizer, alike), jobs)
        for job, parts in self.progress(results, self.journal.count_unread(), "reading"):
            if isinstance(parts, Failure):
                parts = [Found(parts.reason)]
            self.journal.record_found(job.file, parts[0], parts[1:])
            self._commit()
        self._commit(now=True)

    def split(self) -> bool:
        """Find duplicates and give the others a split; whether each has to be split inside.

        Raises:
            InputError: there is no document at all.
        """
        pieces = self.journal.fact("pieces")
        if pieces is None:
            pieces = self.journal.group()
            self.journal.assign_splits(split_of)
            self.journal.note("pieces", pieces)
            self._commit(now=True)
        if not pieces:
            first = self.journal.first_refusal()
            raise InputError(
                f"none of the {self.journal.count_files()} files in {self.corpus} can be used; the first: {first}"
            )
        if pieces < 3:
            self.report(f"too few documents ({pieces}) to hold one out: the last tenth of each is for validation")
        return bool(pieces < 3)

    def learn(self, tokenizer: Tokenizer[Any], rules: Rules, vocab_size: int | None) -> Tokenizer[Any]:
        """A copy of the tokenizer that has learned a vocabulary of merges, and what its controls mean."""
        if self.journal.fact("learned"):
            return type(tokenizer).load(self.folder)
        learned: Tokenizer[Any] = pickle.loads(pickle.dumps(tokenizer))
        documents = list(self._sample(tokenizer, rules))  # here, where Ctrl-C is heard: a library would not hear it
        learned.learn(documents, vocab_size)
        learned.save(self.folder)
        self.journal.note("learned", True)
        self._commit(now=True)
        what = "what its controls mean" if vocab_size is None else f"a vocabulary of {learned.vocab_size:,} ids"
        self.report(f"learned {what}, on whole training documents of about {SAMPLE_IDS:,} ids at most")
        return learned

    def _sample(self, tokenizer: Tokenizer[Any], rules: Rules) -> Iterator[Any]:
        """Training documents in an order of their own, each in one of its variants, until `SAMPLE_IDS` are reached."""
        jobs = (Job(file, self._path(name), wanted) for file, name, wanted in self.journal.shuffled())
        total = 0
        for job, parts in self.pool.map(partial(sample, tokenizer, rules, SAMPLE_IDS), jobs, ordered=True):
            if isinstance(parts, Failure):  # which it was not when it was read
                self.report(f"the vocabulary is learned without {job.path}, which {parts.reason}")
                continue
            for document, count in parts:
                total += count
                yield document
            if total >= SAMPLE_IDS:
                return

    def encode(self, tokenizer: Tokenizer[Any], rules: Rules, *, styled: bool) -> None:
        """Append the ids of each document to the file of its split, in the order of the documents."""
        ids = tokenizer.styles if styled and isinstance(tokenizer, MidiTokenizer) else {}
        with ExitStack() as stack:
            files = self._open_ids(tokenizer, stack)
            jobs = (
                Job(file, self._path(name), wanted, ids.get(style_of(os.fsdecode(name))))
                for file, name, wanted in self.journal.unencoded()
            )
            results = self.pool.map(partial(encode, tokenizer, rules), jobs, ordered=True)
            for job, parts in self.progress(results, self.journal.count_unencoded(), "encoding"):
                if isinstance(parts, Failure):
                    parts = [Encoded.refused(parts.reason)] * len(job.wanted)
                for (place, _), document in zip(job.wanted, parts, strict=True):
                    for split, sequences in document.sequences.items():
                        files[split].writelines(sequences)
                    self.journal.record_outcome(job.file, place, document.outcome)
                self._commit(*files.values())
            self._commit(*files.values(), now=True)

    def _open_ids(self, tokenizer: Tokenizer[Any], stack: ExitStack) -> dict[str, BinaryIO]:
        """The files of ids, each as long as the journal knows it: what was written after its last commit is cut off."""
        paths = {split: self.folder / f"{split}.ids" for split in SPLITS}
        files: dict[str, BinaryIO] = {split: stack.enter_context(path.open("ab")) for split, path in paths.items()}
        lengths = Counter(dict.fromkeys(SPLITS, 0))
        for outcome in self.journal.outcomes():
            lengths.update({split: sum(counts) for split, counts in outcome.lengths.items()})
            lengths["train"] += sum(map(sum, outcome.exercises))
        sizes = {split: n * np.dtype(ids_dtype(tokenizer.vocab_size)).itemsize for split, n in lengths.items()}
        if any(file.tell() < sizes[split] for split, file in files.items()):  # it was tampered with
            self.journal.forget_outcomes()
            sizes = dict.fromkeys(SPLITS, 0)
        for split, file in files.items():
            file.truncate(sizes[split])
        return files

    def write_index(self, tokenizer: Tokenizer[Any]) -> dict[str, dict[str, float]]:
        """The ledger, and where in the ids each document is; gives what each split holds."""
        keys = ("documents", "exercises", "sequences", "ids", "ids_of_originals", *tokenizer.units)
        totals = {split: Counter(dict.fromkeys(keys, 0.0)) for split in SPLITS}
        with ExitStack() as stack:
            # a name that is not UTF-8 is written with escapes
            ledger = stack.enter_context(
                open(self.folder / "ledger.jsonl", "w", encoding="utf-8", errors="backslashreplace")
            )
            writers = {split: stack.enter_context(IndexWriter(self.folder, split)) for split in SPLITS}
            for name, found, documents in self.journal.ledger():
                line = _ledger_line(os.fsdecode(name), found, documents, tokenizer)
                ledger.write(json.dumps(line, ensure_ascii=False) + "\n")
                for outcome in (document.outcome for document in documents if document.outcome):
                    for split, amounts in _amounts(outcome).items():
                        lengths = outcome.lengths[split]
                        writers[split].add(lengths)
                        totals[split].update(amounts)
                        totals[split].update(
                            documents=1, sequences=len(lengths), ids=sum(lengths), ids_of_originals=lengths[0]
                        )
                    for lengths in outcome.exercises:
                        writers["train"].add(lengths)
                        totals["train"].update(
                            documents=1,
                            exercises=1,
                            sequences=len(lengths),
                            ids=sum(lengths),
                            ids_of_originals=lengths[0],
                        )
        return {split: _all_tidy(total) for split, total in totals.items()}

    def count_styles(self, styles: Sequence[str]) -> dict[str, int]:
        """How many training documents each style has, whether they say it or not."""
        found = Counter(dict.fromkeys(styles, 0))
        for name, _, documents in self.journal.ledger():
            if (style := style_of(os.fsdecode(name))) in found:
                found[style] += sum("train" in document.outcome.lengths for document in documents if document.outcome)
        return dict(found)

    def _path(self, name: bytes) -> Path:
        return self.corpus if self.corpus.is_file() else self.corpus / os.fsdecode(name)

    def _commit(self, *files: BinaryIO, now: bool = False) -> None:
        """Make what was done outlive us, `files` first; not more often than pays."""
        if now or time.monotonic() - self._committed >= COMMIT_SECONDS:
            for file in files:
                file.flush()
                os.fsync(file.fileno())
            self.journal.commit()
            self._committed = time.monotonic()


@contextmanager
def _opened(folder: Path, source: dict[str, Any], corpus: Path, report: Report) -> Iterator[Journal]:
    """The journal in `folder`, if it is of the same source; else a new one of all files."""
    asked = source | {"format": FORMAT}
    with ExitStack() as stack:
        try:
            journal = stack.enter_context(Journal(folder / "journal.sqlite"))
            begun = journal.fact("source") == asked
        except sqlite3.OperationalError as error:
            if folder.exists():  # the disk or another process, nothing that a new one would mend
                raise InputError(f"cannot go on with {folder}: {error}") from error
            begun = False
        except sqlite3.DatabaseError:  # no journal, or none of ours
            begun = False
        if begun:
            unread, files = journal.count_unread(), journal.count_files()
            report(f"going on with what was begun before: {unread:,} of {files:,} files to read")
        else:
            stack.close()
            shutil.rmtree(folder, ignore_errors=True)
            (folder / "shards").mkdir(parents=True)
            journal = stack.enter_context(Journal(folder / "journal.sqlite"))
            journal.begin(asked, (os.fsencode(file_name(path, corpus)) for path in find_files(corpus)))
        yield journal


@contextmanager
def _pool(given: Executor | None, config: PrepareConfig, files: int) -> Iterator[Pool]:
    """The executor that was given, a Dask scheduler's, or threads that each watch a process of their own."""
    limits = Limits(config.file_timeout, config.file_memory)
    workers = config.workers or os.cpu_count() or 1
    if given is not None:
        yield Pool(given, workers, limits)
    elif config.scheduler is not None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UsageError("--scheduler needs Dask: pip install 'musicgpt-midi[cluster]'") from error
        try:
            client: Any = Client(config.scheduler, timeout=CONNECT_SECONDS)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise UsageError(f"--scheduler {config.scheduler}: no scheduler answers there ({error})") from error
        with client:
            workers = sum(client.nthreads().values())
            if not workers:
                raise UsageError(f"--scheduler {config.scheduler} has no workers; start some with dask worker")
            yield Pool(client.get_executor(pure=False), workers, limits)
    else:
        workers = min(workers, 1 + files // FILES_WORTH_A_PROCESS)
        threads, stop = ThreadPoolExecutor(workers), Event()
        try:
            yield Pool(threads, workers, replace(limits, stop=stop))
        finally:
            stop.set()
            threads.shutdown(cancel_futures=True)


@contextmanager
def _stopped(out: Path) -> Iterator[None]:
    """What the disk, the network or the system refuses is the user's to mend; what was done so far stays."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {out}: {reason}; mend that, and the same command goes on from there") from error


def _source(
    files: str, tokenizer: Tokenizer[Any], vocab_size: int | None, max_ids: int | None, config: PrepareConfig
) -> dict[str, Any]:
    """All that decides what is in shards: those of the same source are not made again."""
    source = {
        "files": files,
        "tokenizer": _identity(tokenizer),
        "vocab_size": vocab_size,
        "controls": config.controls,
        "transpositions": config.transpositions,
        "dedupe": config.dedupe,
        "max_document_ids": max_ids,
        "file_timeout": config.file_timeout,
        "file_memory": config.file_memory,
    }
    if config.infill:
        source |= {"infill": config.infill, "infill_ids": config.infill_ids}
    if config.styles:
        source |= {"styles": config.styles}
    return source


def _refuse_to_replace(out: Path, replace: bool) -> None:
    """Raises: UsageError: what is in `out` is something else, or not to be replaced."""
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if strange := sorted(there - FILES):
        raise UsageError(f"{out} holds {strange[0]}, which is no part of shards; choose another --out")
    if there and not replace:
        raise UsageError(f"{out} holds other shards; choose another --out, or replace them with --force")


def _made_from(out: Path, source: dict[str, Any]) -> Shards | None:
    """The shards that are there, if they are whole and of this source."""
    with suppress(ShardsError):
        if is_shards(out) and read_json(out / MANIFEST)["source"] == source:
            return Shards(out)
    return None


def make_tokenizer(
    config: PrepareConfig, suffixes: Set[str], given: Tokenizer[Any] | None = None, styles: Sequence[str] = ()
) -> tuple[Tokenizer[Any], int | None]:
    """The one given, or a tokenizer by name or out of a directory; and how many ids it has to learn, if any.

    Raises:
        TokenizerError: unknown or refused, or a vocabulary asked for that is not the directory's.
    """
    name = config.tokenizer or default_name(suffixes, config.kind)
    wanted = [*((*FILL, *TRACKS) if config.infill else ()), *(CONTROL_MARKS if config.controls else ())]
    marks = [*dict.fromkeys(wanted), *(STYLE + style for style in styles)]
    directory = resolve_boxed(Path(name))
    if given is not None or not directory.is_dir():
        tokenizer = given or new_tokenizer(name, marks)
        _check_marks(config, tokenizer, name, styles)
        return tokenizer, config.vocab_size or tokenizer.default_vocab_size
    from musicgpt.checkpoint import resolve_checkpoint  # which brings torch

    with suppress(CheckpointError):  # a run means its best checkpoint
        directory = resolve_checkpoint(directory)
    tokenizer = load_tokenizer(directory)
    _check_marks(config, tokenizer, name, styles)
    if config.vocab_size not in (None, tokenizer.vocab_size):
        raise TokenizerError(
            f"{name} has {tokenizer.vocab_size} ids and --vocab-size asks for {config.vocab_size}: "
            f"leave --vocab-size out, or name a scheme"
        )
    return tokenizer, None


def _check_marks(config: PrepareConfig, tokenizer: Tokenizer[Any], name: str, styles: Sequence[str]) -> None:
    if config.infill and not (isinstance(tokenizer, MidiTokenizer) and tokenizer.has((*FILL, *TRACKS))):
        raise TokenizerError(
            f"--infill: the tokenizer {name} has no marks for filling in; expected a scheme of music, or a "
            f"directory that was prepared with --infill"
        )
    if config.controls and not tokenizer.has_controls:
        raise TokenizerError(
            f"--controls: the tokenizer {name} has no marks for them; expected a scheme of music, or a directory that "
            f"was prepared with --controls"
        )
    known = tokenizer.styles if isinstance(tokenizer, MidiTokenizer) else {}
    if missing := [style for style in styles if style not in known]:
        raise TokenizerError(
            f"--styles: the tokenizer {name} has no style {missing[0]}; it has {', '.join(known) or 'none'}: "
            f"leave that folder out, or name a scheme of music"
        )


def _unsaid(tokenizer: Tokenizer[Any], config: PrepareConfig) -> str:
    """The flags by which marks would be written that the vocabulary has, or nothing."""
    styles = isinstance(tokenizer, MidiTokenizer) and bool(tokenizer.styles)
    there = {"--controls": tokenizer.has_controls and not config.controls, "--styles": styles and not config.styles}
    return " and ".join(name for name, is_unsaid in there.items() if is_unsaid)


def _identity(tokenizer: Tokenizer[Any]) -> str:
    """What tells a tokenizer from any that reads or writes otherwise: its class and what it saves."""
    kind = type(tokenizer)
    with tempfile.TemporaryDirectory(prefix="musicgpt-") as folder:
        tokenizer.save(Path(folder))
        names = ("tokenizer.json", "controls.json")
        saved = b"".join(path.read_bytes() for name in names if (path := Path(folder) / name).is_file())
    return hashlib.sha256(f"{kind.__module__}.{kind.__qualname__}\0".encode() + saved).hexdigest()


def _ledger_line(name: str, found: Found, documents: list[Document], tokenizer: Tokenizer[Any]) -> dict[str, Any]:
    outcomes = [document.outcome for document in documents if document.outcome]
    kept = [outcome for outcome in outcomes if not outcome.refusal]
    remarks = [*found.remarks, *(outcome.refusal for outcome in outcomes if outcome.refusal)]
    duplicates = [document for document in documents if document.original is not None]
    if found.refusal is not None:
        status, remarks = "refused", [found.refusal]
    elif kept:
        status = "kept"
        if duplicates:
            remarks.append(f"{len(duplicates)} of {len(documents)} documents are duplicates")
    elif outcomes:
        status = "too long" if all(outcome.too_long for outcome in outcomes) else "refused"
    else:
        status = "duplicate"
        first = duplicates[0]
        assert first.original is not None
        how = "the same music as" if first.same else "transposed or exported anew, the same music as"
        remarks.append(f"{how} {os.fsdecode(first.original)}")
    counts = Counter(dict.fromkeys((*tokenizer.units, *tokenizer.loss_kinds), 0.0))
    for outcome in kept:
        counts.update(outcome.measure | outcome.losses)
    parts = [_amounts(document.outcome) if document.outcome else {} for document in documents]
    splits = [{split: _all_tidy(amounts) for split, amounts in part.items()} for part in parts]
    line = {"path": name, "status": status, "reason": "; ".join(remarks), "documents": len(kept), "splits": splits}
    return line | _all_tidy(counts)


def _amounts(outcome: Outcome) -> dict[str, dict[str, float]]:
    """The splits that a document is in, and what each has of it: less than the whole where it is split inside."""
    whole = sum(lengths[0] for lengths in outcome.lengths.values())
    return {
        split: {unit: amount * lengths[0] / whole for unit, amount in outcome.measure.items()}
        for split, lengths in outcome.lengths.items()
    }


def _all_tidy(amounts: Mapping[str, float]) -> dict[str, float]:
    return {key: _tidy(value) for key, value in amounts.items()}


def _tidy(value: float) -> float:
    return int(value) if value == int(value) else round(value, 3)


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
        exercises = f", exercises in filling in {total['exercises']:,}" if total["exercises"] else ""
        documents = total["documents"] - total["exercises"]
        yield f"{split}: documents {documents:,}{exercises}, ids {total['ids_of_originals']:,}{variants}"
    if "styles" in manifest:
        yield "training documents by style: " + ", ".join(f"{style} {n:,}" for style, n in manifest["styles"].items())
    lost = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in losses.items() if count)
    yield f"did not fit the vocabulary: {lost or 'nothing'}; every file is in {ledger}"
