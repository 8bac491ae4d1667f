"""A corpus to shards: ledger, duplicates, splits, transpositions, reuse; and everything difficult in one go."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import changes
import numpy as np
import psutil
import pytest
import readers
import symusic
from distributed import Client

from musicgpt import isolation, midi
from musicgpt.batches import Batches
from musicgpt.cli import main
from musicgpt.config import PrepareConfig
from musicgpt.errors import InputError, TokenizerError, UsageError
from musicgpt.marks import FILL, MIDDLE, SUFFIX, TRACKS
from musicgpt.midi_tokenizer import MidiTokenizer
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


def test_exercises_in_filling_in_are_documents_of_their_own(folk: Path, tmp_path: Path) -> None:
    plain = prepare(folk, tmp_path / "plain", PrepareConfig(transpositions=2), report=quiet)
    said: list[str] = []
    config = PrepareConfig(transpositions=2, infill=1.0, infill_ids=256)
    shards = prepare(folk, tmp_path / "shards", config, report=said.append)
    tokenizer = load_tokenizer(tmp_path / "shards")
    assert isinstance(tokenizer, MidiTokenizer)
    train, totals = shards.split("train"), shards.manifest["splits"]["train"]
    begins = tokenizer.mark(SUFFIX)
    exercises = [n for n in range(train.n_documents) if train.sequence(int(train.documents[n]))[1] == begins]
    assert len(exercises) == totals["exercises"] > 5
    assert train.n_documents - len(exercises) == plain.manifest["splits"]["train"]["documents"]
    assert any(f"exercises in filling in {len(exercises):,}" in line for line in said)
    assert all(len(train.sequence(n)) <= 256 for e in exercises for n in range(*train.documents[e : e + 2]))
    ids = sum(len(train.sequence(int(train.documents[n]))) for n in exercises)
    assert 0.5 < ids / (totals["ids_of_originals"] - ids) < 1.5  # K is 1
    for split in ("val", "test"):
        assert begins not in shards.split(split).ids
        assert len(shards.split(split).ids) == len(plain.split(split).ids)
    batches = Batches(
        train,
        window=tokenizer.window,
        batch_size=4,
        n_positions=256,
        seed=0,
        eos_id=tokenizer.eos_id,
        unscored=tokenizer.unscored,
        whole=tokenizer.whole,
    )
    marks = {tokenizer.mark(name) for name in (*FILL, *TRACKS)}
    seen = [batches[step] for step in range(20)]
    assert any(marks & set(ids.flatten().tolist()) for ids, _ in seen)
    assert not any(marks & set(targets.flatten().tolist()) for _, targets in seen)
    for ids, _ in seen:  # what is filled in is learned with both sides in view
        for row in ids.tolist():
            opened = 0
            for id in row:
                opened = 0 if id == tokenizer.bos_id else max(opened, id == begins)
                assert id != tokenizer.mark(MIDDLE) or opened


def test_exercises_do_not_depend_on_the_workers(many: Path, tmp_path: Path) -> None:
    made = []
    for workers in (1, 2):
        config = PrepareConfig(transpositions=1, infill=0.5, infill_ids=256, workers=workers)
        prepare(many, tmp_path / str(workers), config, report=quiet)
        made.append(contents(tmp_path / str(workers)))
    assert made[0] == made[1]


def test_exercises_are_refused_where_there_can_be_none(folk: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words " * 500)
    with pytest.raises(TokenizerError, match="has no marks"):
        prepare(tmp_path / "a.txt", tmp_path / "text", PrepareConfig(infill=1.0), report=quiet)
    prepare(folk, tmp_path / "plain", ONE_KEY, report=quiet)
    config = PrepareConfig(infill=1.0, tokenizer=str(tmp_path / "plain"))
    with pytest.raises(TokenizerError, match="no marks for filling in"):
        prepare(folk, tmp_path / "shards", config, report=quiet)


@pytest.fixture(scope="module")
def many(folk_books: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """140 tunes as ABC: more than one process is worth."""
    corpus = tmp_path_factory.mktemp("many") / "corpus"
    corpus.mkdir()
    for path in sorted((folk_books / "ryansMammoth").glob("*.abc"))[:140]:
        shutil.copy(path, corpus)
    return corpus


def test_workers_change_nothing(many: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        config = PrepareConfig(transpositions=2, vocab_size=1600, workers=workers)
        prepare(many, tmp_path / f"with{workers}", config, report=quiet)
    assert contents(tmp_path / "with1") == contents(tmp_path / "with2")


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Dask scheduler that has two workers, each a process with a thread, on the loopback."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    shared = f"--scheduler-file {file} --no-dashboard --host 127.0.0.1"
    commands = [
        f"scheduler {shared} --port 0",
        f"worker {shared} --nworkers 2 --nthreads 1 --memory-limit 0 --local-directory {folder / 'space'}",
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    processes = []
    for command in commands:
        with open(folder / "log", "ab") as log:
            line = [sys.executable, "-m", "dask", *command.split()]
            processes.append(subprocess.Popen(line, stdout=log, stderr=log, env=environment))
        while not file.is_file():
            time.sleep(0.1)
    with Client(scheduler_file=str(file)) as client:
        client.wait_for_workers(2, timeout=60)
        yield str(client.scheduler.address)
    for process in reversed(processes):
        process.terminate()
        process.wait()


def test_dask_changes_nothing(many: Path, scheduler: str, tmp_path: Path) -> None:
    flags = "--transpositions 2 --vocab-size 1600"
    main(f"prepare {many} --out {tmp_path / 'local'} {flags} --workers 1".split())
    main(f"prepare {many} --out {tmp_path / 'dask'} {flags} --scheduler {scheduler}".split())
    assert contents(tmp_path / "dask") == contents(tmp_path / "local")


@pytest.mark.skipif(sys.platform == "win32", reason="the signal is POSIX's")
def test_a_file_that_kills_its_reader_costs_no_worker_of_a_cluster(scheduler: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("one", "two", "three", "abort"):
        (corpus / f"{name}.txt").write_text(f"So long lives this, and this gives life to {name}.")
    tokenizer = readers.Troubled.new("bytes")
    with Client(scheduler) as client:
        before = set(client.scheduler_info()["workers"])
        executor = client.get_executor()
        prepare(corpus, tmp_path / "out", PrepareConfig(), tokenizer=tokenizer, executor=executor, report=quiet)
        assert set(client.scheduler_info()["workers"]) == before
    refused = {name: line["reason"] for name, line in ledger(tmp_path / "out").items() if line["status"] != "kept"}
    assert refused == {"abort.txt": "made the process that read it die (SIGABRT)"}


def test_a_scheduler_that_is_not_there_is_an_error_in_one_line(
    folk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("musicgpt.prepare.CONNECT_SECONDS", 1)
    with pytest.raises(UsageError, match=r"--scheduler tcp://127.0.0.1:9: no scheduler answers there"):
        prepare(folk, tmp_path / "shards", PrepareConfig(scheduler="tcp://127.0.0.1:9"), report=quiet)
    with pytest.raises(UsageError, match=r"--scheduler nonsense://x: no scheduler answers there"):
        prepare(folk, tmp_path / "shards", PrepareConfig(scheduler="nonsense://x"), report=quiet)
    assert not list(tmp_path.iterdir())


KILLABLE = """
import sys
from pathlib import Path
import readers
import musicgpt.prepare
from musicgpt.config import PrepareConfig
musicgpt.prepare.COMMIT_SECONDS = 0.0
tokenizer = readers.LoggingText.new("bpe") if sys.argv[3] == "text" else readers.LoggingMusic.new("remi")
config = PrepareConfig(transpositions=2, vocab_size=int(sys.argv[4]), workers=2)
report = lambda text: print(text, flush=True)
musicgpt.prepare.prepare(Path(sys.argv[1]), Path(sys.argv[2]), config, tokenizer=tokenizer, report=report)
"""


class Killable:
    """A `prepare` in a process of its own, whose reads are counted."""

    def __init__(self, corpus: Path, out: Path, kind: str = "text", vocab_size: int = 300) -> None:
        self.command = [sys.executable, "-c", KILLABLE, str(corpus), str(out), kind, str(vocab_size)]
        self.log = out.with_name(f"{out.name}-reads")
        self.log.touch()
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        self.environment = os.environ | {"READS": str(self.log), "PYTHONPATH": path}

    def reads(self) -> int:
        return len(self.log.read_text().splitlines())

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command, env=self.environment, stdout=subprocess.PIPE, text=True)

    def run_to(self, reads: int, line: str = "") -> None:
        """Start it and kill it when it has printed a line that begins so, and has read so many files since."""
        with self.start() as process:
            assert process.stdout is not None
            while line and not process.stdout.readline().startswith(line):
                assert process.poll() is None
            enough = self.reads() + reads
            while self.reads() < enough:
                assert process.poll() is None
                time.sleep(0.005)
            process.kill()

    def run_to_end(self) -> str:
        return subprocess.run(self.command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="the test reads a log that is being written")
def test_killed_in_either_pass_it_goes_on_and_repeats_only_what_was_under_way(
    folk: Path, tunes: list[symusic.Score], tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i, score in enumerate(tunes):
        midi.write_midi(score, corpus / f"{i:03d}.mid")
    whole = Killable(corpus, tmp_path / "whole", "music", 1600)
    whole.run_to_end()
    killed = Killable(corpus, tmp_path / "killed", "music", 1600)
    killed.run_to(reads=90)
    assert (tmp_path / ".killed.musicgpt-prepare").is_dir()
    killed.run_to(reads=80, line="learned")
    said = killed.run_to_end()
    assert "going on with what was begun before: 0 of 200 files to read" in said
    assert "learned" not in said
    assert {p.name for p in tmp_path.iterdir()} == {"corpus", "whole", "whole-reads", "killed", "killed-reads"}
    assert every(tmp_path / "killed") == every(tmp_path / "whole")
    under_way = 2 * 2 * isolation.BLOCK  # two processes, each at a block and with another that was just done
    assert whole.reads() <= killed.reads() <= whole.reads() + 2 * under_way  # killed twice


@pytest.mark.skipif(sys.platform == "win32", reason="terminals send signals to groups of processes on POSIX")
@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_an_interrupt_at_the_terminal_ends_it_at_once_and_it_goes_on(
    verb: str, tunes: list[symusic.Score], tmp_path: Path
) -> None:
    """While pieces are encoded that take a minute together."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets what runs behind it ignore interrupts
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    for i in range(8):
        long = symusic.Score(tunes[0].tpq)
        long.tracks.append(symusic.Track())
        times = random.Random(i).choices(range(0, 6_000 * long.tpq, long.tpq // 4), k=20_000)
        long.tracks[0].notes.extend(symusic.Note(time, long.tpq // 4, 60 + time % 7, 64) for time in sorted(times))
        midi.write_midi(long, corpus / f"{i}.mid")
    for i, score in enumerate(tunes[:60]):
        midi.write_midi(score, corpus / f"tune{i:02d}.mid")
    command = f"{verb} {corpus} --out {out} --transpositions 24 --workers 2".split()
    shards = out / "shards" if verb == "train" else out
    ids = shards.with_name(f".{shards.name}.musicgpt-prepare") / "shards" / "train.ids"
    for _ in range(2):
        children: list[psutil.Process] = []
        with subprocess.Popen(
            [sys.executable, "-m", "musicgpt", *command], stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            while not ids.exists() or len(children) < 2:  # the second time it is there
                assert process.poll() is None
                time.sleep(0.05)
                children = psutil.Process(process.pid).children(recursive=True)
            began = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            _, said = process.communicate()
        assert time.monotonic() - began < 10  # half a second, where nothing else is run
        assert (process.returncode, said.splitlines()[-1]) == (130, "musicgpt: interrupted")
        assert not any(child.is_running() for child in children)
    assert said.startswith("going on with what was begun before: 0 of 68 files to read\n")


def every(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def texts(many: Path, tmp_path: Path) -> Path:
    """The same tunes as what they are to a tokenizer of text, whose processes start in a moment."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for path in many.iterdir():
        shutil.copy(path, folder / f"{path.stem}.txt")
    return folder


def test_what_was_begun_for_another_thing_is_thrown_away(texts: Path, tmp_path: Path) -> None:
    whole, killed = Killable(texts, tmp_path / "whole"), Killable(texts, tmp_path / "killed")
    killed.run_to(reads=40)
    min(texts.iterdir()).unlink()
    whole.run_to_end()
    assert "going on" not in killed.run_to_end()
    assert every(tmp_path / "killed") == every(tmp_path / "whole")
    assert not (tmp_path / ".killed.musicgpt-prepare").exists()


def test_ids_that_went_missing_meanwhile_are_made_again(texts: Path, tmp_path: Path) -> None:
    whole, killed = Killable(texts, tmp_path / "whole"), Killable(texts, tmp_path / "killed")
    whole.run_to_end()
    killed.run_to(reads=60, line="learned")
    ids = tmp_path / ".killed.musicgpt-prepare" / "shards" / "train.ids"
    os.truncate(ids, ids.stat().st_size // 2)
    killed.run_to_end()
    assert every(tmp_path / "killed") == every(tmp_path / "whole")


def test_a_full_disk_is_one_line_and_once_there_is_room_it_goes_on(texts: Path, tmp_path: Path) -> None:
    """A limit on the size of files, in a child: the write itself fails, as it does where no room is left."""
    code = (
        "import resource, signal, sys; from musicgpt.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "limit = int(sys.argv.pop(1)); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "main(sys.argv[1:])\n"
    )
    command = f"prepare {texts} --out {tmp_path / 'out'} --tokenizer bytes".split()
    for limit in ("60_000", "80_000"):  # the second time, what was begun before is there
        starved = [sys.executable, "-c", code, limit, *command]
        done = subprocess.run(starved, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        said = r"musicgpt: error: cannot write .*out: .*; mend that, and the same command goes on from there"
        assert re.fullmatch(said, done.stderr.splitlines()[-1])
    reports: list[str] = []
    prepare(texts, tmp_path / "out", PrepareConfig(tokenizer="bytes"), report=reports.append)
    left = re.fullmatch(r"going on with what was begun before: (\d+) of (\d+) files to read", reports[0])
    assert left is not None
    assert int(left[1]) < int(left[2])
    prepare(texts, tmp_path / "whole", PrepareConfig(tokenizer="bytes"), report=quiet)
    assert every(tmp_path / "out") == every(tmp_path / "whole")


def test_two_never_write_to_one_place(texts: Path, tmp_path: Path) -> None:
    other = Killable(texts, tmp_path / "shards")
    with other.start() as process:
        while not other.reads():
            time.sleep(0.01)
        with pytest.raises(InputError, match=rf"being written by another process \(pid {process.pid}\)"):
            prepare(texts, tmp_path / "shards", ONE_KEY, report=quiet)
        process.kill()
    prepare(texts, tmp_path / "shards", ONE_KEY, report=quiet)


def test_no_copy_of_a_training_piece_is_validated_on(tunes: list[symusic.Score], tmp_path: Path) -> None:
    """Copies in other keys, resolutions, velocities and tempos, found by their likeness; and none by their content."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    kinds = [changes.transposed, changes.exported(220), changes.velocities, changes.tempo]
    for i, score in enumerate(tunes[:80]):
        midi.write_midi(score, corpus / f"{i:03d}.mid")
        copy = kinds[i % len(kinds)](score, random.Random(i))
        assert copy is not None
        midi.write_midi(copy, corpus / f"{i:03d} copy.mid")
    prepare(corpus, tmp_path / "exact", ONE_KEY, report=quiet)
    prepare(corpus, tmp_path / "alike", replace(ONE_KEY, dedupe="transposed"), report=quiet)
    exact, alike = ledger(tmp_path / "exact"), ledger(tmp_path / "alike")
    assert sum(line["status"] == "kept" for line in exact.values()) > 150
    assert sum(line["status"] == "kept" for line in alike.values()) <= 80
    for i in range(80):
        reason = str(alike[f"{i:03d}.mid"]["reason"])
        assert re.fullmatch(r"(transposed or exported anew, )?the same music as \d\d\d copy\.mid", reason)


def test_text_has_no_likeness_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("To be, or not to be")
    with pytest.raises(UsageError, match="--dedupe transposed compares music"):
        prepare(tmp_path / "a.txt", tmp_path / "shards", PrepareConfig(dedupe="transposed"), report=quiet)


def test_a_document_that_is_too_long_is_left_out_named_and_counted(folk: Path, tmp_path: Path) -> None:
    """Two notes in under a hundred bytes that make some hundred thousand ids: a bar of 1/16 after the other."""
    corpus = tmp_path / "corpus"
    shutil.copytree(folk, corpus)
    score = symusic.Score(4)
    score.time_signatures.append(symusic.TimeSignature(0, 1, 16))
    score.tracks.append(symusic.Track())
    score.tracks[0].notes.append(symusic.Note(0, 1, 60, 64))
    score.tracks[0].notes.append(symusic.Note(4 * 40_000, 1, 60, 64))
    midi.write_midi(score, corpus / "inflated.mid")
    assert (corpus / "inflated.mid").stat().st_size < 100
    said: list[str] = []
    config = PrepareConfig(transpositions=2)
    prepare(corpus, tmp_path / "shards", config, report=said.append)
    line = ledger(tmp_path / "shards")["inflated.mid"]
    assert line["status"] == "too long"
    assert re.fullmatch(
        r"\d\d\d,\d\d\d ids in a document; expected at most 262,144 \(--max-document-ids\)", str(line["reason"])
    )
    assert any("1 too long" in text for text in said)
    prepare(folk, tmp_path / "short", replace(config, max_document_ids=500), report=quiet)
    shorts = ledger(tmp_path / "short").values()
    assert 0 < sum(one["status"] == "too long" for one in shorts) < len(shorts)
    longest = max(np.diff(Shards(tmp_path / "short").split("train").offsets))
    assert longest <= 500 + 2


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
    assert set(statuses) == {"kept", "duplicate", "refused", "too long"}
    assert lines["synthetic/very_long_100k_notes.mid"]["status"] == "too long"
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


def test_what_prepare_did_not_write_is_never_replaced(folk: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"mine holds notes\.txt, which is no part of shards; choose another --out"):
        prepare(folk, out, ONE_KEY, report=quiet)
    assert (out / "notes.txt").read_text() == "mine"


def test_nothing_that_fits_is_an_error_and_leaves_nothing(folk: Path, tmp_path: Path) -> None:
    config = PrepareConfig(transpositions=1, max_document_ids=10)
    with pytest.raises(InputError, match=r"no document of .* could be encoded within --max-document-ids 10"):
        prepare(folk, tmp_path / "out", config, report=quiet)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded")
def test_forked_workers_have_readers_of_their_own(many: Path, tmp_path: Path) -> None:
    prepare(many, tmp_path / "threads", ONE_KEY, report=quiet)  # whose readers stay for a while
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor:
        prepare(many, tmp_path / "forked", ONE_KEY, executor=executor, report=quiet)
    assert every(tmp_path / "threads") == every(tmp_path / "forked")
