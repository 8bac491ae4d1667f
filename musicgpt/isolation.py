"""Work on files that nobody vouches for, each watched over in a process apart: what it breaks costs that item alone.

In: a task (a function of one item that yields results, and None as a sign of life; pickled once) and items. Out: for
each item the list of its results, or `Failure`: the process died of it, gave no sign of life within the time, took
more than its memory, or raised.

Whoever executes `run` (a thread, a process of a pool, a worker of a cluster) borrows a child of this process and
watches it; a child that was killed is replaced. Only a child that had done nothing before is believed: an item at
which another one dies is tried again in a new one, as an item before may have spoiled the memory. So what becomes of
an item does not depend on its neighbours. A child ends when its parent does, and when it has been idle for a while.

A child is a new interpreter that imports what the task needs and nothing of the caller's script: no `if __name__ ==
"__main__"` is called for, and a process that may have no children by multiprocessing (Dask's workers) may have these.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import psutil

from musicgpt.errors import InputError

A = TypeVar("A")

PERIOD = 0.2
"""Seconds between two looks at a child; memory can grow beyond its limit for so long."""

START_SECONDS = 120
"""What a child has to start and to import what the task needs."""

IDLE_SECONDS = 30

GRACE_SECONDS = 5
"""How much longer a child gives itself than its parent does: should the parent die while the child hangs in a parser,
nobody else would end it."""

BLOCK = 8
"""Items that are sent to an executor together."""

BLOCKS_AHEAD = 3
"""Blocks for each worker that are under way or wait for their turn: no more results than these are in memory."""

TRIM = "MALLOC_TRIM_THRESHOLD_"
"""Dask's workers have this in their environment; miditok, which takes and gives back memory all the time, is up to
twenty times as slow with it."""

HINT = "its class has to stand in a module that can be imported there, not in the script itself"

CODE = "import sys; sys.path[:] = {path!r}; from musicgpt.isolation import serve; serve()"


@dataclass(frozen=True)
class Limits:
    """What an item may take: seconds without a sign of life, and memory of the process and those it starts."""

    seconds: float
    megabytes: int
    stop: threading.Event | None = None
    """Once it is set nobody waits for results any more. Only where threads of this process execute `run`."""

    @property
    def over(self) -> bool:
        return self.stop is not None and self.stop.is_set()


@dataclass(frozen=True)
class Failure:
    """Why an item has no results, in words that go behind its name."""

    reason: str


def run(task: bytes, items: Sequence[Any], limits: Limits) -> list[list[Any] | Failure]:
    """Each item through the pickled task, one after the other.

    Raises:
        InputError: no child can be started, or it cannot load the task.
        CancelledError: nobody waits for the results any more.
    """
    return [_run(task, item, limits) for item in items]


def _run(task: bytes, item: Any, limits: Limits) -> list[Any] | Failure:
    child = _borrow()
    if child.used:
        with suppress(_Died):
            return child.results(task, item, limits)
        child = Child()
    try:
        return child.results(task, item, limits)
    except _Died as death:
        return Failure(str(death))


@dataclass(frozen=True)
class Pool:
    """Any executor, to put many items through tasks; `workers` is how many blocks of items it does at once."""

    executor: Executor
    workers: int
    limits: Limits

    def map(
        self, task: Callable[[A], Iterator[Any]], items: Iterable[A], *, ordered: bool = False
    ) -> Iterator[tuple[A, list[Any] | Failure]]:
        """Each item and what `run` makes of it, as it is done, or in the order of the items.

        Raises:
            InputError: the task cannot be handed to another process.
        """
        try:
            pickled = pickle.dumps(task)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(f"this cannot be handed to another process: {error}; {HINT}") from error
        items = iter(items)
        waiting: dict[Future[list[list[Any] | Failure]], list[A]] = {}

        def done() -> Iterator[tuple[A, list[Any] | Failure]]:
            first = list(waiting)[:1] if ordered else list(waiting)
            for future in wait(first, return_when=FIRST_COMPLETED).done:
                yield from zip(waiting.pop(future), future.result(), strict=True)

        try:
            while block := list(islice(items, BLOCK)):
                waiting[self.executor.submit(run, pickled, block, self.limits)] = block
                while len(waiting) >= BLOCKS_AHEAD * self.workers:
                    yield from done()
            while waiting:
                yield from done()
        finally:
            for future in waiting:
                future.cancel()


class _Died(Exception):
    """A child is no more; the text says of what."""


_idle: list[Child] = []  # append, pop and remove are atomic
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # children are their parent's alone


def _borrow() -> Child:
    try:
        return _idle.pop()
    except IndexError:
        return Child()


class Child:
    """A process that runs a task on items, and the thread that watches it. Used by one thread at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", CODE.format(path=sys.path)]
        environment = {name: value for name, value in os.environ.items() if name != TRIM}
        # a session of its own: the parent decides what an interrupt at the terminal means
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self._seen = psutil.Process(self.process.pid)  # which knows when another has come to have this id
        self.used = False
        self._task = b""
        self._limits = Limits(START_SECONDS, sys.maxsize)
        self._since = time.monotonic()
        self._busy = False
        self._verdict = ""
        threading.Thread(target=self._watch, daemon=True).start()

    def results(self, task: bytes, item: Any, limits: Limits) -> list[Any] | Failure:
        """Raises: _Died: the child did not live to send them all. InputError, CancelledError: as `run` does."""
        if task != self._task:
            self._load(task, limits)
        found = self._ask((item, limits.seconds), limits)
        self.used = True
        _idle.append(self)
        return found[-1] if found and isinstance(found[-1], Failure) else found

    def _load(self, task: bytes, limits: Limits) -> None:
        try:
            refused = self._ask(task, replace(limits, seconds=START_SECONDS, megabytes=sys.maxsize))
        except _Died as death:
            if self.used:
                raise
            raise InputError(f"a process to read files in did not start: {death}") from death
        if refused:
            raise InputError(f"this cannot be loaded in another process: {refused[0]}; {HINT}")
        self._task = task

    def _ask(self, message: Any, limits: Limits) -> list[Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._since, self._limits = time.monotonic(), limits
        self._busy = True
        answers: list[Any] = []
        try:
            pickle.dump(message, self.process.stdin)
            self.process.stdin.flush()
            while (answer := pickle.load(self.process.stdout)) is not None:
                self._since = time.monotonic()
                answers += answer
        except (OSError, EOFError, pickle.UnpicklingError):
            self.close()
            if limits.over:
                raise CancelledError from None
            raise _Died(self._verdict or _cause_of_death(self.process.returncode)) from None
        self._since = time.monotonic()
        self._busy = False
        return answers

    def _watch(self) -> None:
        while self.process.poll() is None:
            time.sleep(PERIOD)
            seconds = time.monotonic() - self._since
            if not self._busy:
                if seconds > IDLE_SECONDS and self in _idle:
                    with suppress(ValueError):  # borrowed in this moment
                        _idle.remove(self)
                        self.close()
            elif self._limits.over:
                self._kill()
            elif seconds > self._limits.seconds:
                self._kill(f"gave no sign within {self._limits.seconds:g} s and was given up")
            elif seconds > PERIOD and self._megabytes() > self._limits.megabytes:
                self._kill(f"took more than {self._limits.megabytes:,} MB of memory and was given up")

    def _megabytes(self) -> float:
        total = 0
        for process in self._family():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total / 2**20

    def _family(self) -> list[psutil.Process]:
        """The child and what it has started."""
        try:
            return [self._seen, *self._seen.children(recursive=True)]
        except psutil.Error:
            return []

    def _kill(self, verdict: str = "") -> None:
        self._verdict = self._verdict or verdict
        for process in self._family():
            with suppress(psutil.Error):
                process.kill()

    def close(self) -> None:
        """End the child, if it has not ended; not while another thread waits for its answers."""
        self._kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was not sent cannot be sent any more
                pipe.close()


def _cause_of_death(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"made the process that read it die ({name}{', perhaps for lack of memory' * (name == 'SIGKILL')})"
    return f"made the process that read it end (exit status {status})"


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().close()


def serve() -> None:
    """The life of a child: tasks and items come through stdin, results go to stdout."""
    with suppress(ValueError):  # on Windows, which has no sessions
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    messages, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    nowhere = os.open(os.devnull, os.O_WRONLY)
    task: Any = None

    def answer(values: list[Any] | None) -> None:
        pickle.dump(values, answers)
        answers.flush()

    with suppress(EOFError, OSError):  # the parent is gone
        while True:
            message = pickle.load(messages)
            if isinstance(message, bytes):
                try:
                    task = pickle.loads(message)
                    gc.collect()
                    gc.freeze()  # what was imported stays: looking through it again took a third of the time of miditok
                    gc.set_threshold(10_000)
                except Exception as error:  # unpickling runs imports of the caller's, which may raise anything
                    answer([f"{type(error).__name__}: {error}"])
            else:
                item, seconds = message
                end_in = partial(faulthandler.dump_traceback_later, seconds + GRACE_SECONDS, exit=True, file=nowhere)
                try:
                    end_in()
                    for result in task(item):
                        end_in()
                        answer([] if result is None else [result])
                except BrokenPipeError:
                    raise
                except Exception as error:  # of a reader that may be anybody's: it costs this file
                    answer([Failure(f"cannot be read for a fault of the reader: {_described(error)}")])
                faulthandler.cancel_dump_traceback_later()
            answer(None)
    os._exit(0)  # nothing is left to flush but a pipe that nobody reads


def _described(error: Exception) -> str:
    """An exception and where it came from, in one line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" ({Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__} {' '.join(str(error).split())[:160]}{place}"
