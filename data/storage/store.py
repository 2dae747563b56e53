"""Stores of named objects: a local folder, or an object store through obstore.

Local folders are read with plain system calls: obstore's runtime threads do not survive a fork, and
trainers fork. Everything else (``s3://``, ``gs://``, ``az://``, ...) goes through obstore
(`data.storage.object_store`), with credentials from the usual environment variables.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError as ObstoreError

from data.errors import InputError, StorageError, first_line
from data.files import sync_folder, write_whole
from data.storage.object_store import open_objects
from data.storage.request_checks import check_range, checked_name
from data.storage.store_errors import credential_variables

_OF_THE_FILE = (errno.ENOENT, errno.EIO, errno.EISDIR)  # not of a mount that is stale or away


class Store(Protocol):
    """Named objects below one URL. Names are relative, without ``..``, links or odd characters."""

    @property
    def url(self) -> str:
        """The URL or folder, as error messages name it."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        ...

    def size(self, name: str) -> int | None:
        """Length of the object in bytes; None: there is none. InputError when it cannot be looked up."""
        ...

    def read(self, name: str) -> bytes:
        """All bytes of an object; InputError when it is missing or cannot be read."""
        ...

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`; InputError when there are fewer."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Create or replace an object as a whole: readers see the old bytes or the new ones."""
        ...

    def cancel_retries(self) -> None:
        """Stop waiting for a server that does not respond: pending requests fail. For any thread."""
        ...


def open_store(url: str, retry_seconds: float | None = None, anonymous: bool = False) -> Store:
    """Open a folder (plain path or ``file://``) or an object-store prefix (``s3://bucket/prefix``).

    Args:
        url: The folder or prefix.
        retry_seconds: How long a request to an object store is retried before it fails, also where the server
            has never answered. None: for `RETRY_SECONDS`, once the server has answered this process; before,
            a refused connection is an error at once.
        anonymous: Whether an object store is asked without credentials: what is public.

    Raises:
        InputError: The scheme is unknown or its settings are missing.
    """
    if "://" not in url:
        return FileStore(Path(url).expanduser())
    try:
        parts = urlsplit(url)
        if parts.scheme == "http":
            raise InputError(
                f"{url}: has no TLS; expected https://, or s3:// with AWS_ENDPOINT_URL and AWS_ALLOW_HTTP"
            )
        if parts.scheme != "file":
            return open_objects(url, retry_seconds, anonymous)
    except (ObstoreError, ValueError) as error:
        raise InputError(
            f"{url}: cannot open this object store ({first_line(error)}); expected a path, file://, s3://, "
            f"gs:// or az:// with credentials in the environment ({credential_variables(url)})"
        ) from error
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{url}: file URL names the host {parts.netloc!r}, expected file:///absolute/path")
    return FileStore(Path(unquote(parts.path)))


def is_object_store(url: str) -> bool:
    """Whether a URL is of an object store, and not of a folder."""
    return "://" in url and urlsplit(url).scheme != "file"


class FileStore:
    """A local folder; created by the first write."""

    def __init__(self, folder: Path) -> None:
        """Store objects as files below `folder`."""
        self._folder = folder

    @property
    def url(self) -> str:
        """The folder."""
        return str(self._folder)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        path = self.path(name)
        try:
            return path.is_file()
        except OSError as error:  # a folder that may not be entered, a name that is too long
            raise InputError(f"{path}: cannot be looked up ({error.strerror})") from error

    def size(self, name: str) -> int | None:
        """Length of the file in bytes; None: there is no such file."""
        path = self.path(name)
        try:
            return path.stat().st_size if path.is_file() else None
        except OSError as error:
            raise InputError(f"{path}: cannot be looked up ({error.strerror})") from error

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        path = self.path(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise _read_error(path, error) from error

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`."""
        path = self.path(name)
        try:
            with path.open("rb") as file:
                # Before the read: a wrong size must not allocate its memory.
                length = os.fstat(file.fileno()).st_size
                check_range(str(path), length, offset, size)
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise _read_error(path, error) from error
        check_range(str(path), offset + len(content), offset, size)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a temporary file, flush it to the disk, rename it."""
        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
            sync_folder(path.parent)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); choose a writable place with free space"
            ) from error

    def cancel_retries(self) -> None:
        """Do nothing: a folder is never waited for."""

    def path(self, name: str) -> Path:
        """The object's path.

        Raises:
            InputError: The name is not a plain relative one.
        """
        return self._folder / checked_name(name)


def _read_error(path: Path, error: OSError) -> InputError:
    """The error of a read: what the file holds is to blame, or the file system, which may answer later."""
    kind = InputError if error.errno in _OF_THE_FILE else StorageError
    return kind(f"{path}: cannot be read ({error.strerror})")
