"""Finding files, assigning splits, and the corpora that have a name."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path

import pytest

from musicgpt import corpus, midi
from musicgpt.errors import InputError


def names(root: Path) -> list[str]:
    return sorted(corpus.file_name(path, root) for path in corpus.find_files(root))


def test_files_are_found_recursively_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b/2.mid", "a/1.mid", "b/notes.txt", ".git/x.mid", "b/.hidden.mid", "c.abc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == ["a/1.mid", "b/2.mid", "b/notes.txt", "c.abc"]
    assert list(corpus.find_files(tmp_path / "c.abc")) == [tmp_path / "c.abc"]


def test_the_samples_of_a_run_are_no_part_of_a_corpus(tmp_path: Path) -> None:
    for name in (
        "1.mid",
        "runs/a/run.json",
        "runs/a/metrics.jsonl",
        "runs/a/samples/2.mid",
        "runs/b/run.json",
        "runs/b/3.mid",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == ["1.mid", "runs/b/3.mid", "runs/b/run.json"]
    assert list(corpus.find_files(tmp_path / "runs" / "a" / "samples" / "2.mid"))


def test_a_folder_is_found_once_however_many_links_lead_to_it(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for name in ("root/in/1.mid", "elsewhere/2.mid", "elsewhere/deep/3.mid"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for link, target in {
        "root/a": elsewhere,
        "root/b": elsewhere,
        "root/c": elsewhere / "deep",
        "root/in/again": root / "in",
        "root/loop": root,
        "root/up": tmp_path,
        "elsewhere/back": root,
        "root/file.mid": elsewhere / "2.mid",
        "root/nowhere.mid": tmp_path / "missing",
    }.items():
        (tmp_path / link).symlink_to(target)
    assert names(root) == ["a/2.mid", "a/deep/3.mid", "file.mid", "in/1.mid", "nowhere.mid"]


def test_a_survey_knows_each_change_and_no_order(tmp_path: Path) -> None:
    for root in (tmp_path / "one", tmp_path / "two"):
        (root / "folder").mkdir(parents=True)
        for name in ("a.mid", "b.TXT", "folder/a.mid")[:: 1 if root.name == "one" else -1]:
            (root / name).write_text(name)
            os.utime(root / name, ns=(0, 10**9))
    before = corpus.survey(tmp_path / "one")
    assert before == corpus.survey(tmp_path / "two")
    assert (before.count, before.suffixes) == (3, {".mid", ".txt"})
    seen = {before.digest}
    os.utime(tmp_path / "one" / "a.mid", ns=(0, 1))
    seen.add(corpus.survey(tmp_path / "one").digest)
    (tmp_path / "one" / "a.mid").rename(tmp_path / "one" / "c.mid")
    seen.add(corpus.survey(tmp_path / "one").digest)
    (tmp_path / "one" / "c.mid").unlink()
    seen.add(corpus.survey(tmp_path / "one").digest)
    assert len(seen) == 4


def test_splits_hold_what_they_promise() -> None:
    counts = Counter(corpus.split_of(hashlib.sha256(str(i).encode()).hexdigest()) for i in range(4000))
    assert counts["val"] / 4000 == pytest.approx(0.05, abs=0.012)
    assert counts["test"] / 4000 == pytest.approx(0.05, abs=0.012)


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
    files = sorted(corpus.find_files(folder))
    assert tmp_path in folder.parents
    assert len(files) >= least
    assert all(midi.read_scores(path)[0][0].note_num() > 0 for path in files[::100])
    assert len(said) == 1
    assert corpus.resolve_corpus(name, said.append) == folder
    assert len(said) == 1
