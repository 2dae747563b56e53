"""Files and folders that are written as a whole or not at all.

They are filled under a temporary name beside the final one, which tells the process that writes. What a
process that was killed has left is removed by the next one that writes to the same folder.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError

_TEMPORARY = re.compile(r"\..+[.-](?P<machine>[0-9a-f]{8})-(?P<process>\d{1,9})(-[0-9a-f]{8})?\.tmp")
_ABANDONED = 86_400.0  # seconds without a change, after which a writer on another machine has ended
_cleaned: set[Path] = set()  # folders that this process has looked through
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # no space on the disk, or none left of the user's quota


def is_disk_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full, or that the user's quota on it is used up."""
    return isinstance(error, OSError) and error.errno in DISK_FULL


def disk_full_error(error: OSError) -> InputError:
    """What to tell the user of an error for which `is_disk_full` is true."""
    place = error.filename or "a file"
    return InputError(
        f"{place}: cannot be written ({error.strerror}); free space on its disk, then give the same command "
        "again"
    )


def user_mistake(error: BaseException) -> InputError | None:
    """An error as one that the user can correct: an `InputError`, or that of a full disk; None: another."""
    if isinstance(error, OSError) and is_disk_full(error):
        return disk_full_error(error)
    return error if isinstance(error, InputError) else None


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
    remove_leftovers(path.parent)
    temporary = path.with_name(f".{path.name}.{_writer()}.tmp")
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
    remove_leftovers(folder.parent)
    temporary = folder.with_name(f".tmp-{folder.name}-{_writer()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with naming_full_disk(folder):
            temporary.mkdir(parents=True)
            yield temporary
            sync_folder(temporary)
            temporary.rename(folder)
            sync_folder(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def writable_folder(path: Path, setting: str = "out") -> Path:
    """Make the folder and check that it can be written, before hours of work for results that go there.

    Args:
        path: The folder.
        setting: Name of the setting that says it, for the message.

    Raises:
        InputError: It cannot be made, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(
            f"{setting}={path}: cannot write into this folder ({error.strerror}); choose another"
        ) from error
    return path


def output_file(name: str | Path, suffix: str, setting: str = "out") -> Path:
    """The file that a setting names for a command to write; its folder is made and checked beforehand.

    The ending is checked because the file is replaced: one of another kind is the user's, or a record of a
    run, and named by mistake.

    Args:
        name: Of the file.
        suffix: Its ending, as `.png`.
        setting: Name of the setting, for the message.

    Raises:
        InputError: Another ending, a folder, or its folder cannot be written.
    """
    path = Path(name)
    if path.suffix.lower() != suffix or path.is_dir():
        raise InputError(f"{setting}={name}: expected the name of a file that ends in {suffix}")
    writable_folder(path.parent, setting)
    return path


def private_folder(parent: Path, name: str) -> Path:
    """Make a folder that only this user may read, for the life of this process.

    It is removed at the process's end; where that is killed, by the next one that makes such a folder there.

    Args:
        parent: Folder that exists, such as that of temporary files.
        name: Part of the folder's name.

    Raises:
        OSError: It cannot be made.
    """
    remove_leftovers(parent)
    folder = parent / f".tmp-{name}-{_writer()}-{uuid.uuid4().hex[:8]}.tmp"
    folder.mkdir(mode=0o700)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of processes that have ended, once for each folder and process.

    Those of another machine, or of this one before it was started again, have to be a day old. What cannot be
    removed stays: it takes space and disturbs nothing.
    """
    if folder.absolute() in _cleaned:
        return
    _cleaned.add(folder.absolute())
    with contextlib.suppress(OSError):  # no such folder yet, or one that cannot be listed
        for entry in os.scandir(folder):
            found = _TEMPORARY.fullmatch(entry.name)
            if found and _has_ended(Path(entry.path), found["machine"], int(found["process"])):
                _remove(Path(entry.path))


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    _flush(folder)


def _writer() -> str:
    """This process, as it stands in the names of its temporary files."""
    return f"{_machine()}-{os.getpid()}"


@functools.cache
def _machine() -> str:
    """Where numbers of processes are unique: this start of this machine, and the container in it."""
    names = [socket.gethostname()]
    with contextlib.suppress(OSError):  # not Linux
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text("utf-8"))
        names.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256(" ".join(names).encode()).hexdigest()[:8]


def _has_ended(path: Path, machine: str, process: int) -> bool:
    """Whether the process that wrote a temporary file or folder has ended."""
    if machine == _machine():
        return not _is_alive(process)
    paths = [path, *path.rglob("*")] if path.is_dir() else [path]
    return time.time() - max(each.stat().st_mtime for each in paths) > _ABANDONED


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
