"""A file that kills, hangs or swells its reader costs that file, through `prepare` as a user calls it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import readers

from musicgpt import isolation
from musicgpt.config import PrepareConfig
from musicgpt.errors import InputError
from musicgpt.isolation import Limits, Pool
from musicgpt.prepare import prepare

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals and pause() are POSIX's")


def quiet(text: str) -> None:
    pass


def ledger(shards: Path) -> dict[str, dict[str, object]]:
    lines = [json.loads(line) for line in (shards / "ledger.jsonl").read_text().splitlines()]
    return {line["path"]: line for line in lines}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Thirty small files; of text, as the processes that read it start in a moment."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_text(f"Sonnet {i}\nShall I compare thee to {i} summer's days?\n" * (i + 1))
    return folder


@POSIX
def test_what_a_file_breaks_costs_that_file(texts: Path, tmp_path: Path) -> None:
    """On any executor, with the same bytes as the other files alone give."""
    config = PrepareConfig(file_timeout=4.0, file_memory=800, workers=2)
    tokenizer = readers.Troubled.new("bytes")
    prepare(texts, tmp_path / "without", config, tokenizer=tokenizer, report=quiet)
    reasons = {
        "abort": "made the process that read it die (SIGABRT)",
        "segfault": "made the process that read it die (SIGSEGV)",
        "exit": "made the process that read it end (exit status 3)",
        "hang": "gave no sign within 4 s and was given up",
        "greedy": "took more than 800 MB of memory and was given up",
        "raise": "cannot be read for a fault of the reader: LookupError no such thing (readers.py:",
    }
    for name in reasons:
        (texts / f"{name}.txt").write_text(f"I {name}")
    prepare(texts, tmp_path / "local", config, tokenizer=tokenizer, report=quiet)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        prepare(texts, tmp_path / "pool", config, tokenizer=tokenizer, executor=executor, report=quiet)
    lines = ledger(tmp_path / "local")
    assert len(lines) == 36
    for name, reason in reasons.items():
        assert lines[f"{name}.txt"]["status"] == "refused"
        assert str(lines[f"{name}.txt"]["reason"]).startswith(reason)
    for path in (tmp_path / "without").iterdir():
        if path.name not in ("manifest.json", "ledger.jsonl"):
            assert (tmp_path / "local" / path.name).read_bytes() == path.read_bytes()
    for path in (tmp_path / "local").iterdir():
        assert (tmp_path / "pool" / path.name).read_bytes() == path.read_bytes()


@POSIX
def test_nobody_dies_for_what_another_did(texts: Path, tmp_path: Path) -> None:
    prepare(texts, tmp_path / "shards", PrepareConfig(), tokenizer=readers.Spoiling.new("bytes"), report=quiet)
    assert {line["status"] for line in ledger(tmp_path / "shards").values()} == {"kept"}


@POSIX
def test_a_file_that_can_be_read_only_once_is_left_out_of_the_rest(texts: Path, tmp_path: Path) -> None:
    (texts / "once.txt").write_text("Once more unto the breach, dear friends")
    said: list[str] = []
    config, tokenizer = PrepareConfig(vocab_size=300), readers.DyingLater.new("bpe")
    prepare(texts, tmp_path / "shards", config, tokenizer=tokenizer, report=said.append)
    reason = "made the process that read it die (SIGABRT)"
    assert said[0] == f"the vocabulary is learned without {texts / 'once.txt'}, which {reason}"
    lines = ledger(tmp_path / "shards")
    refused = {path: line["reason"] for path, line in lines.items() if line["status"] != "kept"}
    assert refused == {"once.txt": reason}


def test_what_dask_sets_for_its_workers_does_not_slow_a_child_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isolation.TRIM, "65536")
    while isolation._idle:
        isolation._idle.pop().close()
    ((_, found),) = Pool(ThreadPoolExecutor(1), 1, Limits(10, 2048)).map(readers.variable, [isolation.TRIM])
    assert found == ["unset"]


def test_a_class_that_no_other_process_can_import_is_refused_in_one_line(texts: Path, tmp_path: Path) -> None:
    class Local(readers.Troubled):
        pass

    with pytest.raises(InputError, match="has to stand in a module that can be imported"):
        prepare(texts, tmp_path / "shards", PrepareConfig(), tokenizer=Local.new("bytes"), report=quiet)
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from musicgpt.config import PrepareConfig\n"
        "from musicgpt.text_tokenizer import TextTokenizer; from musicgpt.prepare import prepare\n"
        "class Mine(TextTokenizer): pass\n"
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), PrepareConfig(), tokenizer=Mine.new('bytes'), report=print)\n"
    )
    done = subprocess.run(
        [sys.executable, script, texts, tmp_path / "shards"], capture_output=True, text=True, check=False
    )
    assert "has to stand in a module that can be imported" in done.stderr.splitlines()[-1]


def test_a_script_needs_no_guard(texts: Path, tmp_path: Path) -> None:
    """Where processes are spawned, they import nothing of it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from pathlib import Path; from musicgpt.config import PrepareConfig\n"
        "from musicgpt.prepare import prepare; print('once')\n"
        "prepare(Path(sys.argv[1]), Path(sys.argv[2]), PrepareConfig(transpositions=1), report=lambda text: None)\n"
    )
    done = subprocess.run(
        [sys.executable, script, texts, tmp_path / "shards"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("once\n", "")


def test_children_are_used_again_and_go_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "IDLE_SECONDS", 0.5)
    while isolation._idle:
        isolation._idle.pop().close()
    before = set(psutil.Process().children())
    with ThreadPoolExecutor(2) as executor:
        pool = Pool(executor, 2, Limits(10, 2048))
        found = dict(pool.map(readers.doubled, range(100)))
        assert found == {n: [n, 2 * n] for n in range(100)}
        assert [n for n, _ in pool.map(readers.doubled, range(100), ordered=True)] == list(range(100))
    children = set(psutil.Process().children()) - before
    assert 1 <= len(children) <= 2
    psutil.wait_procs(children, timeout=5)
    assert not isolation._idle
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_signs_of_life_give_more_time() -> None:
    with ThreadPoolExecutor(1) as executor:
        ((_, found),) = Pool(executor, 1, Limits(1.0, 2048)).map(readers.slow_but_alive, [5])
    assert found == [5]


@POSIX
def test_a_child_that_hangs_does_not_outlive_its_parent(tmp_path: Path) -> None:
    """It is in native code with the interpreter's lock when the parent is killed."""
    code = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from pathlib import Path; import readers\n"
        "from musicgpt.isolation import Limits, Pool\n"
        "list(Pool(ThreadPoolExecutor(1), 1, Limits(3.0, 2048)).map(readers.hanging, [Path(sys.argv[1])]))\n"
    )
    path = tmp_path / "pid"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", code, path], env=environment)
    while not (path.is_file() and path.read_text()):
        time.sleep(0.05)
    child = psutil.Process(int(path.read_text()))
    parent.kill()
    parent.wait()
    assert child.is_running()
    child.wait(timeout=3 + isolation.GRACE_SECONDS + 2)
