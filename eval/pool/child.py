"""One process of the pool, the pipe to it, and the time by which it must have got on."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any, Protocol

# A rendering context does not survive a fork.
_CONTEXT = multiprocessing.get_context("spawn")


_THREADS = "OMP_NUM_THREADS"


class Deadline(Protocol):
    """A time shared by two processes, in seconds of the machine's monotonic clock."""

    value: float


class Child:
    """A process that this one has started. It ends when this one does, however that ends.

    It computes with one thread, unless OMP_NUM_THREADS says otherwise: the pool's processes share the cores,
    and threads that wait for one another there cost more than they compute.

    Args:
        target: Runs in the process, as `target(connection, deadline, *arguments)`; importable.
        arguments: Further ones, pickled.
        name: Of the process, in messages.
        seconds: Until when it must have got on first; afterwards it moves its own deadline.
    """

    def __init__(
        self, target: Callable[..., None], arguments: tuple[Any, ...], name: str, seconds: float
    ) -> None:
        self.name = name
        self.connection, theirs = _CONTEXT.Pipe()
        self._deadline: Deadline = _CONTEXT.Value("d", time.monotonic() + seconds, lock=False)
        self._process = _CONTEXT.Process(
            target=target, args=(theirs, self._deadline, *arguments), name=name, daemon=True
        )
        with _one_thread():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid or 0

    @property
    def sentinel(self) -> int:
        """Becomes ready for `multiprocessing.connection.wait` when the process has ended."""
        return self._process.sentinel

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return not self._process.is_alive()

    @property
    def seconds_left(self) -> float:
        """Until the deadline; negative when it has passed."""
        return self._deadline.value - time.monotonic()

    def allow(self, seconds: float) -> None:
        """Move the deadline."""
        self._deadline.value = time.monotonic() + seconds

    def kill(self) -> str:
        """End the process at once, if it has not ended, and say how it did."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started inside read it before they import numpy, whose threads are counted only then."""
    if _THREADS in os.environ:
        yield
        return
    os.environ[_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_THREADS]


class Heart:
    """The child's hand on its deadline.

    Args:
        deadline: Shared with the parent.
        seconds: One beat lasts.
    """

    def __init__(self, deadline: Deadline, seconds: float) -> None:
        self._deadline, self._seconds = deadline, seconds

    def beat(self) -> None:
        """Something got on."""
        self._deadline.value = time.monotonic() + self._seconds

    def allow(self, seconds: float) -> None:
        """What comes may take longer than a beat."""
        self._deadline.value = time.monotonic() + seconds

    def rest(self) -> None:
        """Waiting for others, for as long as it takes."""
        self._deadline.value = math.inf


def end_with_parent() -> None:
    """Let this process end, without a word, as soon as its parent has."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ctrl-C reaches all; the parent speaks for all
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
