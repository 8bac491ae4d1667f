"""A corpus to shards: ledger, duplicates, splits, transpositions, reuse; and everything difficult in one go."""

from __future__ import annotations

import json
import os
import random
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import symusic

from musicgpt import midi
from musicgpt.config import PrepareConfig
from musicgpt.errors import InputError, ShardsError, TokenizerError
from musicgpt.prepare import prepare
from musicgpt.shards import Shards
from musicgpt.tokenizer import load_tokenizer

ONE_KEY = PrepareConfig(transpositions=1)


def quiet(text: str) -> None:
    pass


def ledger(shards: Path) -> dict[str, dict[str, object]]:
    lines = [json.loads(line) for line in (shards / "ledger.jsonl").read_text().splitlines()]
    return {line["path"]: line for line in lines}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}


def test_every_file_has_a_line_and_the_ids_are_those_of_the_files(folk: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(folk, corpus / "folk")
    shutil.copy(corpus / "folk" / "000.mid", corpus / "copy.mid")
    (corpus / "readme.txt").write_text("hello")
    (corpus / "broken.MID").write_bytes(b"MThd")
    shards = prepare(corpus, tmp_path / "shards", ONE_KEY, report=quiet)
    lines = ledger(tmp_path / "shards")
    assert len(lines) == 63
    assert {"path", "status", "reason", "notes", "notes_lost"} <= set.intersection(*map(set, lines.values()))
    assert lines["copy.mid"]["status"] == "kept"
    assert lines["folk/000.mid"]["status"] == "duplicate"
    assert lines["folk/000.mid"]["reason"] == "the same music as copy.mid"
    assert lines["readme.txt"]["status"] == lines["broken.MID"]["status"] == "refused"
    assert "no music file by its name" in str(lines["readme.txt"]["reason"])
    tokenizer = load_tokenizer(tmp_path / "shards")
    expected = set()
    for path in corpus.rglob("*.mid"):
        (score,), _ = midi.read_scores(path)
        expected.add((tokenizer.bos_id, *tokenizer.encode(score), tokenizer.eos_id))
    found = set()
    for split in ("train", "val", "test"):
        part = shards.split(split)
        found |= {tuple(part.sequence(i).tolist()) for i in range(len(part.offsets) - 1)}
    assert found == expected
    totals = shards.manifest["splits"]
    assert sum(total["notes"] for total in totals.values()) == sum(line["notes"] for line in lines.values())  # type: ignore[misc]
    assert sum(total["documents"] for total in totals.values()) == len(expected)


def test_a_tune_book_is_many_documents(folk_books: Path, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    shutil.copy(folk_books / "oneills1850" / "0001-0050.abc", tmp_path / "books")
    shards = prepare(tmp_path / "books", tmp_path / "shards", ONE_KEY, report=quiet)
    assert sum(total["documents"] for total in shards.manifest["splits"].values()) == 50
    assert ledger(tmp_path / "shards")["0001-0050.abc"]["documents"] == 50


def test_training_pieces_are_transposed_and_the_others_are_not(folk: Path, tmp_path: Path) -> None:
    shards = prepare(folk, tmp_path / "shards", PrepareConfig(transpositions=5), report=quiet)
    train, val = shards.split("train"), shards.split("val")
    assert (np.diff(val.documents) == 1).all()
    assert (np.diff(train.documents) == 5).all()
    tokenizer = load_tokenizer(tmp_path / "shards")
    first = [tokenizer.decode(train.sequence(i)).tracks[0].notes[0].pitch for i in range(5)]
    assert [pitch - first[0] for pitch in first] == [0, 1, -1, 2, -2]


def test_workers_change_nothing(folk_books: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for path in sorted((folk_books / "ryansMammoth").glob("*.abc"))[:140]:
        shutil.copy(path, corpus)
    for workers in (1, 2):
        config = PrepareConfig(transpositions=2, vocab_size=1600, workers=workers)
        prepare(corpus, tmp_path / f"with{workers}", config, report=quiet)
    assert contents(tmp_path / "with1") == contents(tmp_path / "with2")


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_documents_are_split_inside(n: int, folk: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for path in sorted(folk.iterdir())[:n]:
        shutil.copy(path, corpus)
    said: list[str] = []
    shards = prepare(corpus, tmp_path / "shards", PrepareConfig(transpositions=3), report=said.append)
    assert any("to hold one out: the last tenth of each" in text for text in said)
    tokenizer = load_tokenizer(tmp_path / "shards")
    train, val = shards.split("train"), shards.split("val")
    for i, path in enumerate(sorted(corpus.iterdir())):
        (score,), _ = midi.read_scores(path)
        ids = tokenizer.encode(score)
        head, tail = train.sequence(3 * i).tolist(), val.sequence(i).tolist()
        assert head + tail[1:] == [tokenizer.bos_id, *ids, tokenizer.eos_id]
        assert len(head) == 1 + int(0.9 * len(ids))


def test_nothing_changed_nothing_done_and_else_done_again(folk: Path, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "shards"
    shutil.copytree(folk, corpus)
    said: list[str] = []

    def stamp(config: PrepareConfig) -> int:
        said.clear()
        prepare(corpus, out, config, report=said.append)
        return (out / "train.ids").stat().st_mtime_ns

    first = stamp(ONE_KEY)
    assert stamp(ONE_KEY) == first
    assert said == [f"{out} was prepared before and nothing has changed"]
    second = stamp(PrepareConfig(transpositions=2))
    assert second > first
    assert stamp(PrepareConfig(transpositions=2, tokenizer="tsd")) > second
    tokenizer = load_tokenizer(out)
    sequence = Shards(out).split("val").sequence(0).tolist()
    assert tokenizer.encode(tokenizer.decode(sequence)) == sequence[1:-1]  # and not in the ids of the one before
    third = stamp(ONE_KEY)
    (corpus / "000.mid").unlink()
    assert stamp(ONE_KEY) > third


def test_all_that_is_difficult_in_one_go(shared: Path, tmp_path: Path) -> None:
    shards = prepare(shared / "hard", tmp_path / "shards", ONE_KEY, report=quiet)
    lines = ledger(tmp_path / "shards")
    assert len(lines) == sum(path.is_file() for path in (shared / "hard").rglob("*"))
    statuses = Counter(line["status"] for line in lines.values())
    assert set(statuses) == {"kept", "duplicate", "refused"}
    assert all(line["reason"] for line in lines.values() if line["status"] != "kept")
    assert all("\n" not in str(line["reason"]) for line in lines.values())
    assert sum(line["notes_lost"] for line in lines.values()) == 0  # type: ignore[misc]
    assert len(shards.split("val").ids) > 0


@pytest.mark.parametrize("what", ["nothing", "only another", "a missing folder"])
def test_a_folder_with_nothing_usable_leaves_nothing_behind(what: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    if what == "only another":
        (corpus / "a.pdf").write_text("hello")
    with pytest.raises(InputError, match=r"holds no files|none of the 1 files .*a.pdf is no music file"):
        prepare(corpus, tmp_path / "shards", ONE_KEY, report=quiet)
    assert not (tmp_path / "shards").exists()


def test_a_vocabulary_in_a_directory_is_used_as_it_is(run: Path, folk: Path, tmp_path: Path) -> None:
    prepare(folk, tmp_path / "shards", PrepareConfig(tokenizer=str(run / "best"), transpositions=1), report=quiet)
    assert (tmp_path / "shards" / "tokenizer.json").read_bytes() == (run / "best" / "tokenizer.json").read_bytes()
    with pytest.raises(TokenizerError, match=r"has \d+ ids and --vocab-size asks for 99"):
        prepare(folk, tmp_path / "more", PrepareConfig(tokenizer=str(run / "best"), vocab_size=99), report=quiet)


def test_shards_cut_short_or_missing_are_noticed(folk: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    prepare(folk, out, ONE_KEY, report=quiet)
    path = out / "train.ids"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ShardsError, match=r"train.ids has \d+ bytes, expected \d+; prepare the corpus again"):
        Shards(out).split("train")
    path.unlink()
    with pytest.raises(ShardsError, match="is missing"):
        Shards(out).split("train")
    with pytest.raises(ShardsError, match="holds no prepared data"):
        Shards(tmp_path)


def test_drums_alone_are_a_corpus(shared: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for path in sorted((shared / "corpora" / "groove" / "train").glob("*.mid"))[:12]:
        shutil.copy(path, corpus)
    shards = prepare(corpus, tmp_path / "shards", PrepareConfig(), report=quiet)
    assert (np.diff(shards.split("train").documents) == 1).all()


def test_a_note_that_the_scheme_cannot_write_is_counted(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(3):
        score = symusic.Score(480)
        score.tracks.append(symusic.Track())
        score.tracks[0].notes.append(symusic.Note(0, 480 * (i + 70), 60, 64))
        midi.write_midi(score, corpus / f"{i}.mid")
    said: list[str] = []
    prepare(corpus, tmp_path / "shards", ONE_KEY, report=said.append)
    assert any("3 durations clipped" in text for text in said)
    assert {line["durations_clipped"] for line in ledger(tmp_path / "shards").values()} == {1}


def test_names_that_are_odd_and_links_are_in_the_ledger(folk: Path, tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    corpus.mkdir()
    elsewhere.mkdir()
    files = sorted(folk.iterdir())
    for i, name in enumerate((b"caf\xe9.mid", "日本.mid".encode(), b"a b;c.mid")):
        shutil.copy(files[i], os.fsencode(corpus) + b"/" + name)
    shutil.copy(files[4], elsewhere / "linked.mid")
    (corpus / "folder").symlink_to(elsewhere)
    (corpus / "loop").symlink_to(corpus)
    (corpus / "nowhere.mid").symlink_to(tmp_path / "missing")
    prepare(corpus, tmp_path / "shards", ONE_KEY, report=quiet)
    lines = ledger(tmp_path / "shards")
    assert len(lines) == 5
    assert lines["nowhere.mid"]["status"] == "refused"
    assert lines["folder/linked.mid"]["status"] == "kept"


def test_a_piece_without_end_costs_that_piece(folk: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(folk, corpus)
    for i in range(5):
        score = symusic.Score(1)
        score.tracks.append(symusic.Track())
        score.tracks[0].notes.append(symusic.Note(0, 1, 60, 64))
        score.tracks[0].notes.append(symusic.Note(2**28 + i, 1, 60, 64))
        (corpus / f"long{i}.mid").write_bytes(score.dumps_midi())
    prepare(corpus, tmp_path / "shards", PrepareConfig(transpositions=1, vocab_size=1500), report=quiet)
    line = ledger(tmp_path / "shards")["long0.mid"]
    assert "quarter notes long; expected at most 50,000" in str(line["reason"])


def test_musicxml_that_kills_verovio_costs_that_file(folk: Path, folk_books: Path, tmp_path: Path) -> None:
    """Real scores with bytes overwritten: some are read, some are not; none takes the rest along."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    shutil.copy(folk_books / "bach" / "bwv269.mxl", corpus)
    with zipfile.ZipFile(folk_books / "bach" / "bwv269.mxl") as packed:
        name = next(name for name in packed.namelist() if name.endswith("xml") and "META" not in name)
        data = packed.read(name)
    for seed in range(6):
        dice, spoiled = random.Random(seed), bytearray(data)
        for _ in range(40):
            spoiled[dice.randrange(len(spoiled))] = dice.choice(b'0123456789<>/"')
        (corpus / f"spoiled{seed}.musicxml").write_bytes(spoiled)
    for path in sorted(folk.iterdir())[:3]:
        shutil.copy(path, corpus)
    prepare(corpus, tmp_path / "shards", ONE_KEY, report=quiet)
    lines = ledger(tmp_path / "shards")
    assert len(lines) == 10
    assert lines["bwv269.mxl"]["status"] == "kept"


def test_damaged_shards_are_made_again(folk: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    prepare(folk, out, ONE_KEY, report=quiet)
    whole = (out / "train.ids").read_bytes()
    (out / "train.ids").write_bytes(whole[:-2])
    prepare(folk, out, ONE_KEY, report=quiet)
    assert (out / "train.ids").read_bytes() == whole


def test_a_manifest_of_something_else_is_a_file_like_any(folk: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(folk, corpus)
    (corpus / "manifest.json").write_text('{"name": "a web page"}')
    prepare(corpus, tmp_path / "shards", ONE_KEY, report=quiet)
    assert ledger(tmp_path / "shards")["manifest.json"]["status"] == "refused"
