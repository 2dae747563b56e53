"""Locks on names, between all threads and processes of a node, without a file for each.

A name is a byte of one empty file: open file description locks (`fcntl(2)`, F_OFD_SETLK) cover ranges of
bytes, also beyond a file's end, belong to an opening of the file, and the system releases them when a process
ends, however it ends. Two names that share a byte only wait for each other.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

_LOG = logging.getLogger(__name__)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, process
_HELD = (errno.EAGAIN, errno.EACCES)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two tries, doubled at every try
_BITS = 62  # a signed offset, and room for the length

PATIENCE = 60.0
"""Seconds to wait for others: one that is stopped, or waits for a storage that is away, holds nobody up."""


def deadline() -> float:
    """When `PATIENCE` is over, from now on (seconds of `time.monotonic`)."""
    return time.monotonic() + PATIENCE


def keep_trying(attempt: Callable[[], bool], end: float, cancelled: threading.Event | None = None) -> bool:
    """Repeat an attempt with pauses.

    Args:
        attempt: Returns whether it succeeded; made at least once.
        end: Last time of an attempt, from `deadline`.
        cancelled: Set by others to end the pauses.

    Returns:
        Whether it succeeded; False: the time is over, or cancelled.
    """
    cancelled = threading.Event() if cancelled is None else cancelled
    pause = _FIRST_PAUSE
    while not attempt():
        if time.monotonic() >= end or cancelled.wait(pause):
            return False
        pause = min(2 * pause, _LONGEST_PAUSE)
    return True


def try_flock(file: int, kind: int) -> bool:
    """Lock an open file (`flock(2)`) without waiting; False: another opening of it holds it.

    Args:
        file: Descriptor.
        kind: `fcntl.LOCK_EX` or `LOCK_SH`.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class FetchLocks:
    """Locks of names in a folder; for any number of threads and processes.

    Args:
        path: File of the locks, made where it does not exist; it stays empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._missing = False  # whether the file system has none
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Wait no longer for any lock. For any thread."""
        self._cancelled.set()

    @property
    def cancelled(self) -> threading.Event:
        """Set by `cancel`."""
        return self._cancelled

    @contextmanager
    def held(self, names: Sequence[str]) -> Generator[None]:
        """Hold the locks of names for the length of a `with` block.

        They are taken in ascending order, so that no two wait for each other in a circle. After `PATIENCE`,
        when cancelled, and on a file system without such locks, the block runs without those that are held.

        Args:
            names: Each of 64 hexadecimal digits.

        Raises:
            OSError: The file cannot be made.
        """
        file = None if self._missing else os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if file is not None:
                self._lock_all(file, sorted({int(name, 16) >> 256 - _BITS for name in names}))
            yield
        finally:
            if file is not None:
                os.close(file)

    def _lock_all(self, file: int, positions: Sequence[int]) -> None:
        end = deadline()
        for position in positions:
            if not keep_trying(partial(self._try_lock, file, position), end, self._cancelled):
                return

    def _try_lock(self, file: int, position: int) -> bool:
        """Lock one byte of an open file; False: another opening holds it."""
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, position, 1, 0)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in _HELD:
                return False
            self._report_missing(error)
        return True

    def _report_missing(self, error: OSError) -> None:
        if not self._missing:
            self._missing = True
            _LOG.warning(
                "%s: its file system has no locks of ranges (%s): processes of this node that read the same "
                "episode at the same time fetch it each; choose a folder on a local disk",
                self._path.parent,
                error.strerror,
            )
