"""One process of the pool, the pipe to it, and the deadline by which it must make progress."""

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
_NUM_THREADS = "OMP_NUM_THREADS"


class Deadline(Protocol):
    """A time shared by two processes, in seconds of the machine's monotonic clock."""

    value: float


class ChildProcess:
    """A process started by this one. It ends when this one does, for whatever reason that ends.

    It computes with one thread unless OMP_NUM_THREADS is set: the pool's processes share the cores, and
    threads that wait for one another there cost more than they compute.

    Args:
        target: Runs in the process, as `target(connection, deadline, *arguments)`; importable.
        arguments: Further arguments, pickled.
        name: Name of the process, for messages.
        timeout: Seconds until its first deadline; afterwards it renews its own deadline.
    """

    def __init__(
        self, target: Callable[..., None], arguments: tuple[Any, ...], name: str, timeout: float
    ) -> None:
        self.name = name
        self.connection, child_end = _CONTEXT.Pipe()
        self._deadline: Deadline = _CONTEXT.Value("d", time.monotonic() + timeout, lock=False)
        self._process = _CONTEXT.Process(
            target=target, args=(child_end, self._deadline, *arguments), name=name, daemon=True
        )
        with _single_threaded():
            self._process.start()
        child_end.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid or 0

    @property
    def sentinel(self) -> int:
        """Becomes ready for `multiprocessing.connection.wait` when the process has ended."""
        return self._process.sentinel

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return not self._process.is_alive()

    @property
    def seconds_left(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self._deadline.value - time.monotonic()

    def extend(self, seconds: float) -> None:
        """Move the deadline to so many seconds from now."""
        self._deadline.value = time.monotonic() + seconds

    def kill(self) -> str:
        """Kill the process unless it has ended; return how it ended (signal name or exit code)."""
        self._process.kill()
        self._process.join()
        self.connection.close()
        code = self._process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Let processes started inside compute with one thread: numpy reads the variable at its import."""
    if _NUM_THREADS in os.environ:
        yield
        return
    os.environ[_NUM_THREADS] = "1"
    try:
        yield
    finally:
        del os.environ[_NUM_THREADS]


class Heartbeat:
    """Renews the deadline of a child process from inside it.

    Args:
        deadline: Shared with the parent.
        interval: Seconds by which one beat extends the deadline.
    """

    def __init__(self, deadline: Deadline, interval: float) -> None:
        self._deadline, self._interval = deadline, interval

    def beat(self) -> None:
        """Report progress: the next beat is due within the interval."""
        self.extend(self._interval)

    def extend(self, seconds: float) -> None:
        """Allow so many seconds until the next beat."""
        self._deadline.value = time.monotonic() + seconds

    def pause(self) -> None:
        """Suspend the deadline while the process waits for a message."""
        self._deadline.value = math.inf


def end_with_parent() -> None:
    """End this process, without output, as soon as its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ctrl-C reaches all processes; only the parent reports it
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
