"""Files that are whole or absent: written beside, flushed, renamed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from musicgpt.errors import InputError


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` at `path`, or leave what was there.

    Raises:
        InputError: the file cannot be written (no room, no permission, a missing folder).
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Raises: InputError: no such file, or no JSON object in it."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds {type(value).__name__}; expected a JSON object")
    return value


@contextmanager
def directory_in_place(path: Path) -> Iterator[Path]:
    """A folder to fill that becomes `path` when all went well, in place of what was there; else nothing changes.

    Between the two renames the old folder is at `set_aside(path)`: `recover` puts it back after a crash just there.

    Raises:
        InputError: the folder cannot be made or filled.
    """
    beside, old = path.with_name(f".{path.name}.{os.getpid()}.tmp"), set_aside(path)
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; expected a folder, or nothing yet")
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            os.replace(path, old)
        os.replace(beside, path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def set_aside(path: Path) -> Path:
    """Where a folder is while its successor takes its name; a name that nobody gives a folder of their own."""
    return path.with_name(f".{path.name}.musicgpt-old")


def recover(path: Path) -> None:
    """Finish what `directory_in_place` was doing when the process died."""
    old = set_aside(path)
    if old.exists():
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(old, path)
