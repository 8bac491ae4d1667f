"""Finding files, assigning splits, and the corpora that have a name."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest

from musicgpt import corpus, midi
from musicgpt.errors import InputError


def prints(n: int) -> list[str]:
    return [hashlib.sha256(str(i).encode()).hexdigest() for i in range(n)]


def test_files_are_found_recursively_in_a_fixed_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.mid", "a/1.mid", "b/notes.txt", ".git/x.mid", "b/.hidden.mid", "c.abc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = corpus.find_files(tmp_path)
    assert [corpus.file_name(path, tmp_path) for path in found] == ["a/1.mid", "b/2.mid", "b/notes.txt", "c.abc"]
    assert corpus.find_files(tmp_path / "c.abc") == [tmp_path / "c.abc"]


def test_splits_hold_what_they_promise() -> None:
    splits = corpus.assign_splits(prints(4000))
    counts = Counter(splits.values())
    assert counts["val"] / 4000 == pytest.approx(0.05, abs=0.012)
    assert counts["test"] / 4000 == pytest.approx(0.05, abs=0.012)
    grown = corpus.assign_splits(prints(8000))
    assert all(grown[value] == split for value, split in splits.items())


@pytest.mark.parametrize("n", range(3, 40))
def test_a_small_corpus_has_something_to_train_and_to_validate_on(n: int) -> None:
    for start in range(5):
        counts = Counter(corpus.assign_splits(prints(50)[start : start + n]).values())
        assert counts["val"] >= 1
        assert counts["train"] >= 1


def test_what_is_no_corpus_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(InputError, match=r"nowhere is neither a file nor a folder, nor .* \(folk, chorales\)"):
        corpus.resolve_corpus("nowhere", print)


@pytest.mark.parametrize(("name", "least"), [("folk", 4200), ("chorales", 400)])
def test_named_corpora_are_converted_once(
    name: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said: list[str] = []
    folder = corpus.resolve_corpus(name, said.append)
    files = corpus.find_files(folder)
    assert tmp_path in folder.parents
    assert len(files) >= least
    assert all(midi.read_scores(path)[0][0].note_num() > 0 for path in files[::100])
    assert len(said) == 1
    assert corpus.resolve_corpus(name, said.append) == folder
    assert len(said) == 1
