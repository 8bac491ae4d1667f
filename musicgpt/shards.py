"""Ids on disk: one file of ids for each split, memory-mapped back, and a manifest.

    train.ids        the sequences of all documents, end to end, little-endian uint16 or uint32
    train.offsets    int64: where each sequence begins in train.ids, and the end
    train.documents  int64: the first sequence of each document, and the end
    manifest.json    what is in them, and what they were made from

A document of train has one sequence for each of its variants (transpositions), val and test have the original only.
A sequence is BOS, ids, EOS; where the two are one id, it is BOS, ids, and the next BOS ends it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from musicgpt.errors import InputError, ShardsError
from musicgpt.files import read_json

SPLITS = ("train", "val", "test")
FORMAT = 1
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


class ShardWriter:
    """Append documents to one split; use as a context manager."""

    def __init__(self, directory: Path, split: str, vocab_size: int) -> None:
        self.paths = [directory / f"{split}.{part}" for part in ("ids", "offsets", "documents")]
        self.dtype = "<u2" if vocab_size <= 2**16 else "<u4"
        self.offsets = array("q", [0])
        self.documents = array("q", [0])

    def __enter__(self) -> ShardWriter:
        self.file = open(self.paths[0], "wb")
        return self

    def add(self, sequences: Iterable[Sequence[int] | np.ndarray]) -> None:
        """One document: its variants, complete with BOS and EOS."""
        for sequence in sequences:
            self.file.write(np.asarray(sequence, dtype=self.dtype).tobytes())
            self.offsets.append(self.offsets[-1] + len(sequence))
        self.documents.append(len(self.offsets) - 1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if kind is None:
            for path, values in zip(self.paths[1:], (self.offsets, self.documents), strict=True):
                path.write_bytes(np.asarray(values, dtype="<i8").tobytes())


class Shards:
    """A directory that `prepare` wrote.

    Raises:
        ShardsError: no manifest there, or files that are not as long as it says.
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

    @property
    def vocab_size(self) -> int:
        return int(self.manifest["vocab_size"])

    def whole(self) -> bool:
        """Whether every file is as long as the manifest says."""
        try:
            return all(self.split(name) is not None for name in SPLITS)
        except ShardsError:
            return False

    def split(self, name: str) -> Shard:
        """Raises: ShardsError: its files are missing or cut short."""
        assert name in SPLITS, name
        said = self.manifest["splits"][name]
        dtype = "<u2" if self.vocab_size <= 2**16 else "<u4"
        ids = self._map(f"{name}.ids", dtype, said["ids"])
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
