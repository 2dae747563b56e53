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
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

_LOG = logging.getLogger(__name__)
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, process
_HELD = (errno.EAGAIN, errno.EACCES)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two tries, doubled at every try
_BITS = 62  # a signed offset, and room for the length

PATIENCE = 60.0
"""Seconds to wait for others: one that is stopped, or waits for a storage that is away, holds nobody up."""


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
        end = time.monotonic() + PATIENCE
        for position in positions:
            pause = _FIRST_PAUSE
            while not self._try_lock(file, position):
                if time.monotonic() >= end or self._cancelled.wait(pause):
                    return
                pause = min(2 * pause, _LONGEST_PAUSE)

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
