"""Whole or absent, also when the disk is full or the process dies in between."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from musicgpt.errors import InputError
from musicgpt.files import directory_in_place, locked, read_json, recover, set_aside, write_bytes, write_json


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": "Ständchen"})
    assert read_json(path) == {"a": "Ständchen"}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    """A limit on the size of files, in a child: the write itself fails, as it does where no room is left."""
    (tmp_path / "out").write_bytes(b"before")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from musicgpt.files import write_bytes; from musicgpt.errors import InputError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_bytes(Path(sys.argv[1]), bytes(5000))\n"
        "except InputError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert (tmp_path / "out").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_appears_when_it_is_complete_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    for content in ("one", "two"):
        with directory_in_place(target) as beside:
            (beside / "file").write_text(content)
            assert beside != target
        assert (target / "file").read_text() == content
    with pytest.raises(RuntimeError), directory_in_place(target) as beside:  # noqa: PT012
        (beside / "file").write_text("three")
        raise RuntimeError
    assert (target / "file").read_text() == "two"
    assert [p.name for p in target.parent.iterdir()] == ["folder"]


def test_a_crash_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    target = tmp_path / "last"
    with directory_in_place(target) as beside:
        (beside / "file").write_text("one")
    target.rename(set_aside(target))
    recover(target)
    assert (target / "file").read_text() == "one"


@pytest.mark.parametrize("text", ["", "{", "[1]", "\ud800".encode("utf-16", "surrogatepass"), "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError):
        read_json(tmp_path / "x")


def test_a_missing_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_bytes(tmp_path / "no" / "file", b"")


def test_one_process_at_a_time_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "shards"
    code = (
        "import sys; from pathlib import Path; from musicgpt.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"shards is being written by another process \(pid {holder.pid}\)"):
            locked(path).__enter__()
        holder.kill()
    for _ in range(2):
        with locked(path), pytest.raises(InputError, match="another process"):
            locked(path).__enter__()
    assert list(path.parent.iterdir()) == []
