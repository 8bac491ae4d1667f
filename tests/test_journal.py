"""What `prepare` knows, on disk: pieces and splits by their laws, and what a commit keeps."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from musicgpt.corpus import split_of
from musicgpt.journal import Journal
from musicgpt.passes import Found, Outcome


@contextmanager
def journal_of(documents: list[list[str]]) -> Iterator[Journal]:
    """Of files with a document each, whose keys these are."""
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
        journal.begin({}, (f"{i:06d}".encode() for i in range(len(documents))))
        for (file, _), keys in zip(list(journal.unread()), documents, strict=True):
            journal.record_found(file, Found(), [keys])
        yield journal


def fingerprint(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


def components(documents: list[list[str]]) -> list[int]:
    """The lowest document that each is joined to, by union of sets."""
    joined = [{i} for i in range(len(documents))]
    for i, keys in enumerate(documents):
        for j in range(i):
            if set(keys) & set(documents[j]):
                union = joined[i] | joined[j]
                for k in union:
                    joined[k] = union
    return [min(one) for one in joined]


@given(st.lists(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=3), min_size=1, max_size=14))
def test_documents_that_share_a_key_are_one_piece_however_many_steps_apart(documents: list[list[str]]) -> None:
    with journal_of(documents) as journal:
        expected = components(documents)
        assert journal.group() == len(set(expected))
        found = [document.original for _, _, parts in journal.ledger() for document in parts]
    assert found == [None if i == lowest else f"{lowest:06d}".encode() for i, lowest in enumerate(expected)]


@given(st.integers(0, 60), st.integers(0, 10**6))
def test_every_corpus_of_three_has_something_to_train_and_to_validate_on(n: int, start: int) -> None:
    prints = [fingerprint(i) for i in range(start, start + n)]
    with journal_of([[one] for one in prints]) as journal:
        journal.group()
        journal.assign_splits(split_of)
        splits = [split for _, _, wanted in journal.unencoded() for _, split in wanted]
    assert len(splits) == n
    if n >= 3:
        assert {"train", "val"} <= set(splits)
    moved = sum(split != split_of(one) for split, one in zip(splits, prints, strict=True))
    assert moved <= 2 * (n >= 3)
    counts = Counter(map(split_of, prints))
    if counts["train"] > 1 and counts["val"]:
        assert not moved


def test_what_was_committed_stays_and_the_rest_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    names = [b"b", os.fsencode("日本"), b"caf\xe9", b"a"]
    with Journal(path) as journal:
        assert journal.fact("source") is None
        journal.begin({"files": "x"}, names)
        unread = list(journal.unread())
        assert [name for _, name in unread] == sorted(names)
        journal.record_found(unread[0][0], Found(remarks=["odd"]), [[fingerprint(0)], [fingerprint(1), "key"]])
        journal.commit()
        journal.record_found(unread[1][0], Found("broken"), [])
    with Journal(path) as journal:
        assert journal.fact("source") == {"files": "x"}
        assert list(journal.unread()) == unread[1:]
        assert journal.count_unread() == 3
        assert journal.group() == 2
        journal.assign_splits(split_of)
        ((file, name, wanted),) = journal.unencoded()
        assert (file, name, [place for place, _ in wanted]) == (*unread[0], [0, 1])
        journal.record_outcome(file, 1, Outcome({"train": [7, 8]}, {"notes": 3}))
        assert [place for _, _, wanted in journal.unencoded() for place, _ in wanted] == [0]
        assert list(journal.outcomes()) == [Outcome({"train": [7, 8]}, {"notes": 3})]
        journal.forget_outcomes()
        assert journal.count_unencoded() == 1


def test_more_rows_than_a_page(tmp_path: Path) -> None:
    with journal_of([[fingerprint(i)] for i in range(2500)]) as journal:
        journal.group()
        journal.assign_splits(split_of)
        seen = 0
        for file, _, ((place, _),) in journal.unencoded():
            journal.record_outcome(file, place, Outcome({"train": [1]}))  # while the rows are being read
            seen += 1
        assert seen == 2500
        assert journal.count_unencoded() == 0
        assert sum(1 for _ in journal.outcomes()) == 2500
