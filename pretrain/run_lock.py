"""The lock of a run folder: one command trains in it at a time, under Ray and under torchrun alike."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import InputError
from data.locks import LocksMissingError, lock
from pretrain.run_folder import unwritable_folder
from pretrain.run_layout import RunLayout

_LOG = logging.getLogger(__name__)


@contextmanager
def exclusive_access(folder: RunLayout) -> Iterator[None]:
    """Keep every other command that trains out of a run folder for the length of a `with` block.

    Taken before anything is written there. The lock ends with the process, however that ends. A block that
    writes nothing leaves no folder behind. On a file system without locks the commands of one user on one
    machine still exclude each other, by a lock in the temporary folder; a warning says what is not noticed.

    Args:
        folder: Of the run; made where it does not exist.

    Raises:
        InputError: Another command trains in the folder, or it cannot be written.
    """
    path, locks = folder.supervisor_lock, list[tuple[Path, int]]()
    try:
        made = _make(folder.path)
        try:
            locks.append((path, _open_locked(path)))
        except LocksMissingError as error:
            locks += _locks_of_this_machine(folder.path, error)
    except BlockingIOError as error:
        raise InputError(
            f"{folder.path}: another command is training in this folder; wait for it, or choose another "
            "run.name"
        ) from error
    except OSError as error:
        raise unwritable_folder(folder.path, error) from error
    try:
        yield
    finally:
        _remove_unused(path, made)
        for held, descriptor in locks:
            if held != path:
                held.unlink(missing_ok=True)
            os.close(descriptor)


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
    try:
        path = Path(tempfile.gettempdir()) / f"worldvla-{os.getuid()}-{digest}.lock"
        locks.append((path, _open_locked(path)))
    except BlockingIOError:
        raise
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
