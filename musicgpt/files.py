"""Files that are whole or absent: written beside, flushed, renamed; and folders that one process has to itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

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
        _flush_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


MAX_JSON = 2**25
"""A larger file of JSON (32 MiB) is refused unread; Python makes some 20 bytes of each of its bytes, at worst."""


def read_bytes(path: Path, most: int) -> bytes:
    """What a file holds.

    Raises:
        InputError: no such file, one of more than `most` bytes, or a device or a pipe, which need not end.
    """
    try:
        size = path.stat().st_size
        if path.is_file() and size <= most:
            return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if not path.is_file():
        raise InputError(f"cannot read {path}: it is no regular file")
    raise InputError(f"{path} has {size:,} bytes; expected at most {most:,}")


def read_json(path: Path) -> dict[str, Any]:
    """Raises: InputError: no such file, or no JSON object in it."""
    try:
        value = json.loads(read_bytes(path, MAX_JSON))
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
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file; expected a folder, or nothing yet")
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        yield beside
        put_in_place(beside, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def put_in_place(folder: Path, path: Path) -> None:
    """Give a folder that is complete the name `path`, in place of what was there."""
    for file in folder.rglob("*"):
        if file.is_file():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
    _flush_folder(folder)
    recover(path)
    if path.exists():
        os.replace(path, set_aside(path))
    os.replace(folder, path)
    _flush_folder(path.parent)
    shutil.rmtree(set_aside(path), ignore_errors=True)


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


def _flush_folder(folder: Path) -> None:
    """Names on the disk, not only contents: a rename that a power cut undoes would leave what was there before."""
    if os.name == "posix":  # Windows has no such call
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path) -> str:
    """Of a file's bytes; about 1 s a GB and more. Raises: OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else works on `path` meanwhile. The lock is the system's: it goes with the process, however that ends.

    Raises:
        InputError: another process holds it, or it cannot be made.
    """
    name = path.with_name(f".{path.name}.lock")
    lock = FileLock(name, timeout=0)
    try:
        name.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        with suppress(OSError):  # Windows lets nobody write what is locked, not even us
            name.write_text(str(os.getpid()))
    except Timeout:
        try:
            holder = f" (pid {name.read_text()})"
        except OSError:  # Windows lets nobody read it
            holder = ""
        raise InputError(f"{path} is being written by another process{holder}; wait for it") from None
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no file that is open; one that is left locks nothing
            name.unlink()
        lock.release()
