"""What other processes import from here: tokenizers whose reader misbehaves on files of certain names, small tasks."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator
from pathlib import Path

from symusic.core import ScoreTick

from musicgpt.midi_tokenizer import MidiTokenizer
from musicgpt.text_tokenizer import TextTokenizer


class Troubled(TextTokenizer):
    """Dies, hangs, swells or raises, as the name of the file says."""

    def read(self, path: Path) -> tuple[list[str], list[str]]:
        print("what a library prints", flush=True)
        match path.stem:
            case "abort":
                os.abort()
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os._exit(3)
            case "hang":  # in native code, with the interpreter's lock: no signal, no thread of ours gets through
                ctypes.PyDLL(None).pause()
            case "greedy":
                held = []
                while True:
                    held.append(b"x" * 2**25)
            case "raise":
                raise LookupError("no such\nthing")
        return super().read(path)


class Spoiling(TextTokenizer):
    """Reads `0` well, but spoils the process with it for `1`, which dies for nothing it has done."""

    spoiled = False

    def read(self, path: Path) -> tuple[list[str], list[str]]:
        if path.stem == "0":
            Spoiling.spoiled = True
        elif path.stem == "1" and Spoiling.spoiled:
            os.abort()
        return super().read(path)


class DyingLater(TextTokenizer):
    """Reads `once` once, and dies of it from then on."""

    def read(self, path: Path) -> tuple[list[str], list[str]]:
        if path.stem == "once":
            seen = path.parent.with_name("seen")
            if seen.exists():
                os.abort()
            seen.touch()
        return super().read(path)


def log(path: Path) -> None:
    """Take some time, and add the name of the file to the log that the environment names."""
    time.sleep(0.01)
    with open(os.environ["READS"], "a") as file:
        file.write(path.name + "\n")


class LoggingMusic(MidiTokenizer):
    def read(self, path: Path) -> tuple[list[ScoreTick], list[str]]:
        log(path)
        return super().read(path)


class LoggingText(TextTokenizer):
    def read(self, path: Path) -> tuple[list[str], list[str]]:
        log(path)
        return super().read(path)


def doubled(n: int) -> Iterator[int]:
    yield n
    yield 2 * n


def slow_but_alive(n: int) -> Iterator[int | None]:
    for _ in range(n):
        time.sleep(0.4)
        yield None
    yield n


def variable(name: str) -> Iterator[str]:
    yield os.environ.get(name, "unset")


def hanging(path: Path) -> Iterator[None]:
    path.write_text(str(os.getpid()))
    ctypes.PyDLL(None).pause()
    yield None
