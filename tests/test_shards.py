"""Ids on disk: what was written is what is read, and anything else is noticed, in one line."""

from __future__ import annotations

import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicgpt.config import PrepareConfig
from musicgpt.errors import ShardsError
from musicgpt.prepare import prepare
from musicgpt.shards import PARTS, SPLITS, IndexWriter, Shards


@pytest.fixture(scope="module")
def made(folk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "folk"
    prepare(folk, out, PrepareConfig(transpositions=2), report=lambda text: None)
    return out


@pytest.fixture
def shards(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "shards"))


@pytest.mark.parametrize("name", [f"{split}.{part}" for split in SPLITS for part in PARTS])
def test_one_byte_altered_is_noticed(shards: Path, name: str) -> None:
    data = bytearray((shards / name).read_bytes())
    data[len(data) // 2] ^= 1
    (shards / name).write_bytes(data)
    with pytest.raises(ShardsError, match=f"{name} was altered: its sha256 is another; prepare the corpus again$"):
        Shards(shards)


def test_cut_short_or_missing_is_noticed(shards: Path) -> None:
    path = shards / "train.ids"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ShardsError, match=r"train.ids has \d+ bytes, expected \d+; prepare the corpus again"):
        Shards(shards)
    path.unlink()
    with pytest.raises(ShardsError, match="is missing"):
        Shards(shards)
    with pytest.raises(ShardsError, match="holds no prepared data"):
        Shards(shards.parent)


@pytest.mark.parametrize(
    "damage",
    [
        {"splits": {}},
        {"splits": []},
        {"splits": {split: {"ids": "many", "sequences": None, "documents": -1} for split in SPLITS}},
        {"vocab_size": float("inf")},
        {"vocab_size": None},
        {"checksums": 3},
        {"checksums": {}},
        {"format": 1},
    ],
)
def test_a_damaged_manifest_is_noticed(shards: Path, damage: dict[str, object]) -> None:
    path = shards / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(ShardsError, match=r"prepare (it|the corpus) again"):
        Shards(shards)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), max_size=20))
def test_an_index_finds_each_sequence(documents: list[list[int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with IndexWriter(Path(folder), "train") as index:
            for lengths in documents:
                index.add(lengths)
        offsets = np.fromfile(Path(folder) / "train.offsets", dtype="<i8")
        ends = np.fromfile(Path(folder) / "train.documents", dtype="<i8")
    found = [np.diff(offsets[a : b + 1]).tolist() for a, b in pairwise(ends)]
    assert found == documents
