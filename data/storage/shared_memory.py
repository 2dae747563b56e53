"""The cache of a node in its memory, where no folder is set: made by the first process, removed by the last.

    /dev/shm/worldvla-<user>-episodes/           of this user, and closed to all others
    /dev/shm/worldvla-<user>-episodes/.users     locked (flock, shared) by every process that uses the folder

What is left by processes that were all killed is used and removed by the next ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import time
import weakref
from functools import partial
from pathlib import Path

from data.storage.episode_cache import EpisodeCache, stored_bytes
from data.storage.fetch_locks import deadline, keep_trying, try_flock

_LOG = logging.getLogger(__name__)
_PARENT = Path("/dev/shm")
_USERS = ".users"

SHARE = 1 / 8
"""Of the free space of `/dev/shm`, at most."""
LIMIT = 4 * 2**30
"""Bytes, at most."""
LEAST = 256 * 2**20
"""Bytes, below which the folder is not used (64 MB of `/dev/shm` are the default of containers)."""


def ranks_of_this_node() -> int:
    """Ranks of this training on this node, by the variable of torchrun and of our own groups."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def open_shared_memory(parent: Path = _PARENT) -> EpisodeCache | None:
    """Open the cache in the memory of the node; `close` of the last process that uses it removes it.

    Args:
        parent: Folder in memory that all users may write to.

    Returns:
        The cache; None where there is too little room or no such folder, which one line says.
    """
    folder = parent / f"worldvla-{os.getuid()}-episodes"
    try:
        users = _join(folder)
    except OSError as error:
        _report(f"{folder} cannot be used ({error.strerror})")
        return None
    try:
        space = os.statvfs(folder)
        free = space.f_bavail * space.f_frsize + stored_bytes(folder)
    except OSError as error:
        _leave(folder, users, os.getpid())
        _report(f"{folder} cannot be used ({error.strerror})")
        return None
    limit = min(int(SHARE * free), LIMIT)
    if limit < LEAST:
        _leave(folder, users, os.getpid())
        _report(f"{free / 1e6:.0f} MB of {parent} are free, expected {LEAST / SHARE / 1e6:.0f} MB")
        return None
    return _SharedMemoryCache(folder, limit, users)


class _SharedMemoryCache(EpisodeCache):
    """A cache that is removed by the last process that closes it or ends."""

    def __init__(self, folder: Path, limit: int, users: int) -> None:
        super().__init__(folder, limit, name=str(folder))
        self._leave = weakref.finalize(self, _leave, folder, users, os.getpid())

    def close(self) -> None:
        """Leave the folder, which the last process removes."""
        super().close()
        self._leave()


def _join(folder: Path) -> int:
    """Make the folder where it is not there, and become one of its users.

    Returns:
        Descriptor of the locked file of the users.

    Raises:
        OSError: It cannot be made, is a link, is not this user's alone, or a process that is stopped while it
            removes the folder holds the lock all of `fetch_locks.PATIENCE`.
    """
    end = deadline()
    while True:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):  # its last user removes it just now
            users = _open_users(folder)
            try:
                joined = keep_trying(partial(try_flock, users, fcntl.LOCK_SH), end)
                if joined and os.path.samestat(
                    os.stat(folder / _USERS, follow_symlinks=False), os.fstat(users)
                ):
                    return users
            except BaseException:
                os.close(users)
                raise
            os.close(users)
        if time.monotonic() >= end:
            found = f"another process holds the lock of {_USERS} and is stopped; end it"
            raise TimeoutError(errno.ETIMEDOUT, found)


def _open_users(folder: Path) -> int:
    """Open the file of the users in a folder of this user alone."""
    try:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError as error:  # what the system says of a link, too
        found = "a link" if folder.is_symlink() else "no folder"
        raise NotADirectoryError(error.errno, f"it is {found}; remove it") from error
    try:
        status = os.fstat(opened)
        if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
            raise PermissionError(errno.EPERM, "it is not of this user alone; remove it")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(_USERS, flags, 0o600, dir_fd=opened)
    finally:
        os.close(opened)


def _leave(folder: Path, users: int, process: int) -> None:
    """Use the folder no longer, and remove it unless others do."""
    if os.getpid() != process:  # a fork: the lock is that of the process before it
        return
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        with contextlib.suppress(OSError):  # whoever joins now keeps what is there
            _remove(folder)
    finally:
        os.close(users)


def _remove(folder: Path) -> None:
    """Remove the folder; the file of its users last, so that others wait until it is empty."""
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        elif entry.name != _USERS:
            Path(entry.path).unlink(missing_ok=True)
    (folder / _USERS).unlink()
    folder.rmdir()


def _report(found: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        _LOG.warning(
            "%s: each rank of this node reads for itself; set data.cache.dir to a folder on a local disk, or "
            "data.cache.shared_memory=false",
            found,
        )
