"""Ids on disk: one file of ids for each split, memory-mapped back, and a manifest with the checksum of each file.

    train.ids        the sequences of all documents, end to end, little-endian uint16 or uint32
    train.offsets    int64: where each sequence begins in train.ids, and the end
    train.documents  int64: the first sequence of each document, and the end
    manifest.json    what is in them, and what they were made from

A document of train has one sequence for each of its variants (transpositions), val and test have the original only.
A sequence is BOS, ids, EOS; where the two are one id, it is BOS, ids, and the next BOS ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from musicgpt.errors import InputError, ShardsError
from musicgpt.files import read_json, sha256

SPLITS = ("train", "val", "test")
PARTS = ("ids", "offsets", "documents")
FORMAT = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Shard:
    """One split, memory-mapped."""

    ids: np.ndarray
    """(N,) uint16 or uint32: all sequences, end to end."""
    offsets: np.ndarray
    """(sequences + 1,) int64."""
    documents: np.ndarray
    """(documents + 1,) int64."""

    @property
    def n_documents(self) -> int:
        return len(self.documents) - 1

    def sequence(self, i: int) -> np.ndarray:
        return self.ids[self.offsets[i] : self.offsets[i + 1]]


def ids_dtype(vocab_size: int) -> str:
    return "<u2" if vocab_size <= 2**16 else "<u4"


class IndexWriter:
    """Say document by document where the ids of one split begin and end; use as a context manager."""

    def __init__(self, directory: Path, split: str) -> None:
        self.paths = [directory / f"{split}.{part}" for part in ("offsets", "documents")]
        self.ids = self.sequences = 0

    def __enter__(self) -> IndexWriter:
        self.offsets, self.documents = (path.open("wb") for path in self.paths)
        for file in (self.offsets, self.documents):
            file.write(bytes(8))
        return self

    def add(self, lengths: Sequence[int]) -> None:
        """One document: how many ids each of its sequences has."""
        ends = self.ids + np.cumsum(lengths, dtype="<i8")
        self.offsets.write(ends.tobytes())
        self.ids, self.sequences = int(ends[-1]), self.sequences + len(lengths)
        self.documents.write(np.array(self.sequences, dtype="<i8").tobytes())

    def __exit__(self, *_: object) -> None:
        self.offsets.close()
        self.documents.close()


def checksums(directory: Path) -> dict[str, str]:
    """File -> sha256, as it stands in the manifest."""
    return {name: sha256(directory / name) for name in (f"{split}.{part}" for split in SPLITS for part in PARTS)}


class Shards:
    """A directory that `prepare` wrote, every file of which is what was written.

    To open it reads all of them: 0.6 s of CPU a GB where the processor has instructions for SHA-256.

    Raises:
        ShardsError: no manifest there, or files that are missing, cut short or altered.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not is_shards(directory):
            raise ShardsError(f"{directory} holds no prepared data: expected {MANIFEST}; make it with musicgpt prepare")
        try:
            self.manifest: dict[str, Any] = read_json(directory / MANIFEST)
        except InputError as error:
            raise ShardsError(str(error)) from error
        if self.manifest.get("format") != FORMAT:
            raise ShardsError(
                f"{directory} is of format {self.manifest.get('format')}; this version reads {FORMAT}: prepare it again"
            )
        try:
            self._splits = {name: self._open(name) for name in SPLITS}
            altered = checksums(directory).items() - self.manifest["checksums"].items()
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ShardsError(
                f"{directory / MANIFEST} is no manifest of shards ({error!r}); prepare the corpus again"
            ) from error
        if altered:
            name, _ = min(altered)
            raise ShardsError(f"{directory / name} was altered: its sha256 is another; prepare the corpus again")

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    def split(self, name: str) -> Shard:
        return self._splits[name]

    def _open(self, name: str) -> Shard:
        said = self.manifest["splits"][name]
        ids = self._map(f"{name}.ids", ids_dtype(self.vocab_size), said["ids"])
        offsets = self._map(f"{name}.offsets", "<i8", said["sequences"] + 1)
        documents = self._map(f"{name}.documents", "<i8", said["documents"] + 1)
        return Shard(ids, offsets, documents)

    def _map(self, name: str, dtype: str, length: int) -> np.ndarray:
        path = self.directory / name
        try:
            size = path.stat().st_size
        except OSError as error:
            raise ShardsError(f"{path} is missing; prepare the corpus again") from error
        expected = length * np.dtype(dtype).itemsize
        if size != expected:
            raise ShardsError(f"{path} has {size} bytes, expected {expected}; prepare the corpus again")
        return np.memmap(path, dtype=dtype, mode="r") if length else np.zeros(0, dtype=dtype)


def is_shards(directory: Path) -> bool:
    """Whether a manifest of ours is there; many other things are called manifest.json."""
    try:
        return {"format", "splits", "source"} <= set(read_json(directory / MANIFEST))
    except InputError:
        return False
