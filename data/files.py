"""Files and folders that are written as a whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # no space on the disk, or none left of the user's quota


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, or that the user's quota on it is used up."""
    return isinstance(error, OSError) and error.errno in _DISK_FULL


def disk_full_error(error: OSError) -> InputError:
    """What to tell the user of an error for which `is_disk_full` is true."""
    place = error.filename or "a file"
    return InputError(
        f"{place}: cannot be written ({error.strerror}); free space on its disk, then give the same command "
        "again"
    )


@contextmanager
def naming_full_disk(path: Path) -> Generator[None]:
    """Let the error of a full disk that leaves the block name `path`: `write` and `close` name no file.

    Raises:
        OSError: As in the block.
    """
    try:
        yield
    except OSError as error:
        if is_disk_full(error) and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def replacing(path: Path) -> Generator[Path]:
    """Yield the path of a temporary file that replaces `path` when the block succeeds.

    The block creates the file. It is flushed to the disk before it takes the name of `path`, so a reader,
    or a crash, sees the old content or the new and nothing between. When the block fails, it is removed.

    Raises:
        OSError: The file cannot be written; the older file, if any, is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming_full_disk(path):
            yield temporary
            _flush(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new and nothing between.

    Raises:
        OSError: The file cannot be written; the older file, if any, is as it was.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text_whole(path: Path, text: str) -> None:
    """Write a UTF-8 text file like `write_whole`."""
    write_whole(path, text.encode())


@contextmanager
def folder_written_whole(folder: Path) -> Generator[Path]:
    """Make a temporary folder to fill, beside `folder`; it takes that name at the end of the `with` block.

    After an error nothing of it is left. A process that is killed leaves `.tmp-<name>-*`.

    Args:
        folder: Must not exist, or be an empty folder.

    Raises:
        OSError: It cannot be written, or something else has taken its name meanwhile.
    """
    temporary = folder.with_name(f".tmp-{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        with naming_full_disk(folder):
            temporary.mkdir(parents=True)
            yield temporary
            sync_folder(temporary)
            temporary.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    _flush(folder)


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
