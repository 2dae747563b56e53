"""The lock of a run folder: one command trains in it at a time, under Ray and under torchrun alike."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import InputError
from data.locks import LocksMissingError, lock
from pretrain.run_folder import unwritable_folder
from pretrain.run_layout import RunLayout

_LOG = logging.getLogger(__name__)
_SECONDS_OF_LOST_MACHINES = 120.0  # after which file servers give up the locks of a machine that is silent
_POLL_SECONDS = 1.0
_HOLDER = re.compile(r"([\w.-]{1,255}) (\d{1,10})\n")


@contextmanager
def exclusive_access(folder: RunLayout) -> Iterator[None]:
    """Keep every other command that trains out of a run folder for the length of a `with` block.

    Taken before anything is written there. The lock ends with the process, however that ends; a file server
    may keep that of a machine that was lost for some minutes, so that one held on another machine is waited
    for. A block that writes nothing leaves no folder behind. On a file system without locks the commands of
    one user on one machine still exclude each other, by a lock in the temporary folder; a warning says what
    is not noticed.

    Args:
        folder: Of the run; made where it does not exist.

    Raises:
        InputError: Another command trains in the folder, or it cannot be written.
    """
    path, locks = folder.supervisor_lock, list[tuple[Path, int]]()
    try:
        made = _make(folder.path)
        try:
            locks.append((path, _open_when_free(path)))
        except LocksMissingError as error:
            locks += _locks_of_this_machine(folder.path, error)
    except BlockingIOError as error:
        raise InputError(
            f"{folder.path}: another command is training in this folder{_described(_holder(path))}; wait for "
            "it, or choose another run.name"
        ) from error
    except OSError as error:
        raise unwritable_folder(folder.path, error) from error
    try:
        for _, descriptor in locks:
            _write_holder(descriptor)
        yield
    finally:
        _remove_unused(path, made)
        for held, descriptor in locks:
            if held != path:
                held.unlink(missing_ok=True)
            os.close(descriptor)


def _open_when_free(path: Path) -> int:
    """Open and lock a file; one that another machine has locked is waited for.

    Raises:
        BlockingIOError: Another command holds it.
    """
    end: float | None = None
    while True:
        try:
            return _open_locked(path)
        except BlockingIOError:
            host, _ = holder = _holder(path)
            if host in ("", socket.gethostname()):
                raise
            if end is None:
                end = time.monotonic() + _SECONDS_OF_LOST_MACHINES
                _LOG.warning(
                    "%s is locked%s; waiting up to %g s, in case that machine is lost",
                    path.parent,
                    _described(holder),
                    _SECONDS_OF_LOST_MACHINES,
                )
            if time.monotonic() >= end:
                raise
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


def _make(folder: Path) -> list[Path]:
    """Make a folder; return what had to be made, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


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


def _locks_of_this_machine(folder: Path, refusal: LocksMissingError) -> list[tuple[Path, int]]:
    """The lock in the temporary folder instead of one in the run folder; none where that has no locks either.

    Raises:
        BlockingIOError: Another command holds it.
    """
    digest = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    others = "on another machine or of another user"
    locks: list[tuple[Path, int]] = []
    path = Path(f"worldvla-{os.getuid()}-{digest}.lock")
    try:
        path = tempfile.gettempdir() / path
        locks.append((path, _open_locked(path)))
    except BlockingIOError:
        raise
    except LocksMissingError:
        path.unlink(missing_ok=True)
        others = "beside this one"
    except OSError:
        others = "beside this one"
    _LOG.warning(
        "%s: its file system has no locks (%s): a command %s that trains in this folder is not noticed; "
        "start only one",
        folder,
        refusal.strerror,
        others,
    )
    return locks


def _remove_unused(path: Path, made: list[Path]) -> None:
    """Remove the lock's file where its folder holds nothing else, then the folders that were made for it."""
    with suppress(OSError):  # another command is about to use it
        if os.listdir(path.parent) == [path.name]:
            path.unlink()
        for folder in made:
            folder.rmdir()
