"""Locks of files (flock), and file systems that have none.

Lustre without the mount option `flock`, some network and user-space file systems refuse to lock a file. Such
a refusal is an exception of its own: the caller decides what to do without the lock.
"""

from __future__ import annotations

import errno
import fcntl

# ENOSYS: Lustre without flock; EOPNOTSUPP: the file system; ENOLCK: NFS without its lock service.
_REFUSALS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


class LocksMissingError(OSError):
    """The file system of a file has no locks; `strerror` is its answer."""


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
