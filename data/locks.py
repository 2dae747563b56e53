"""Locks of files (flock), file systems that have none, and the lock that one command holds on a folder.

Lustre without the mount option `flock`, some network and user-space file systems refuse to lock a file. Such
a refusal is an exception of its own: the caller decides what to do without the lock.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOG = logging.getLogger(__name__)
# ENOSYS: Lustre without flock; EOPNOTSUPP: the file system; ENOLCK: NFS without its lock service.
_REFUSALS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
_SECONDS_OF_LOST_MACHINES = 120.0  # after which file servers give up the locks of a machine that is silent
_POLL_SECONDS = 1.0
_HOLDER = re.compile(r"([\w.-]{1,255}) (\d{1,10})\n")


class LocksMissingError(OSError):
    """The file system of a file has no locks; `strerror` is its answer."""


class LockHeldError(Exception):
    """Another command holds a lock.

    Attributes:
        holder: Which one, for a message: ` (process 123 on node7)`; empty where that is not known.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(f"another command holds the lock{holder}")
        self.holder = holder


def lock(descriptor: int, wait: bool = True) -> None:
    """Lock an open file against all other openings of it; closing it, or the end of the process, unlocks it.

    Args:
        descriptor: Of a file that is open for writing.
        wait: Wait for another holder to unlock it.

    Raises:
        BlockingIOError: Another opening holds it, and `wait` is false.
        LocksMissingError: The file system has no locks.
        OSError: Any other refusal.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in _REFUSALS:
            raise LocksMissingError(error.errno, error.strerror) from error
        raise


@contextmanager
def exclusive_lock(path: Path) -> Generator[None]:
    """Hold the lock of a folder for the length of a `with` block, against every other command.

    It ends with the process, however that ends; a file server may keep that of a machine that was lost for
    some minutes, so that one held on another machine is waited for. On a file system without locks the
    commands of one user on one machine still exclude each other, by a lock in the temporary folder; a warning
    says what is not noticed.

    Args:
        path: The lock's file in the folder; made where it does not exist, and it stays. A link is refused:
            it may lead to another's file.

    Raises:
        LockHeldError: Another command holds it.
        OSError: The file cannot be written.
    """
    locks: list[tuple[Path, int]] = []
    try:
        locks.append((path, _open_when_free(path)))
    except LocksMissingError as error:
        locks += _locks_of_this_machine(path, error)
    try:
        for _, descriptor in locks:
            _write_holder(descriptor)
        yield
    finally:
        for held, descriptor in locks:
            if held != path:
                held.unlink(missing_ok=True)
            os.close(descriptor)


def _open_when_free(path: Path) -> int:
    """Open and lock a file; one that another machine has locked is waited for."""
    end: float | None = None
    while True:
        try:
            return _open_locked(path)
        except BlockingIOError as error:
            host, _ = found = _holder(path)
            if host in ("", socket.gethostname()):
                raise LockHeldError(_described(found)) from error
            if end is None:
                end = time.monotonic() + _SECONDS_OF_LOST_MACHINES
                _LOG.warning(
                    "%s is locked%s; waiting up to %g s, in case that machine is lost",
                    path.parent,
                    _described(found),
                    _SECONDS_OF_LOST_MACHINES,
                )
            if time.monotonic() >= end:
                raise LockHeldError(_described(found)) from error
            time.sleep(_POLL_SECONDS)


def _write_holder(descriptor: int) -> None:
    """Write this machine and process into a lock's file; it only describes who holds the lock."""
    with suppress(OSError):  # a full disk
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{socket.gethostname()} {os.getpid()}\n".encode(), 0)


def _holder(path: Path) -> tuple[str, str]:
    """Host name and process of a lock's holder; empty where it has not written them."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return "", ""
    match = _HOLDER.fullmatch(text)
    return (match[1], match[2]) if match else ("", "")


def _described(holder: tuple[str, str]) -> str:
    host, process = holder
    return f" (process {process} on {host})" if host else ""


def _open_locked(path: Path) -> int:
    """Open and lock a file, which is made where it does not exist."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            lock(descriptor, wait=False)
            if _is_open_as(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed it meanwhile: another command may lock a new one


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Whether an open file still has this name."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _locks_of_this_machine(path: Path, refusal: LocksMissingError) -> list[tuple[Path, int]]:
    """The lock in the temporary folder instead of `path`; none where that has no locks either."""
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    others = "on another machine or of another user"
    locks: list[tuple[Path, int]] = []
    instead = Path(f"worldvla-{os.getuid()}-{digest}.lock")
    try:
        instead = tempfile.gettempdir() / instead
        locks.append((instead, _open_locked(instead)))
    except BlockingIOError as error:
        raise LockHeldError(_described(_holder(instead))) from error
    except LocksMissingError:
        instead.unlink(missing_ok=True)
        others = "beside this one"
    except OSError:
        others = "beside this one"
    _LOG.warning(
        "%s: its file system has no locks (%s): a command %s that writes to this folder is not noticed; "
        "start only one",
        path.parent,
        refusal.strerror,
        others,
    )
    return locks
