"""Where objects are kept: a local folder, or an object store through obstore.

Local folders are read with plain system calls: obstore's runtime threads do not survive a fork, and
trainers fork. Everything else (``s3://``, ``gs://``, ``az://``, ...) goes through obstore, with
credentials from the usual environment variables.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import ObjectStore as Obstore
from obstore.store import from_url

from data.errors import InputError
from data.files import sync_folder, write_whole

_OBJECT_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")


class Store(Protocol):
    """Named objects below one place. Names are relative, without ``..``, links or odd characters."""

    @property
    def url(self) -> str:
        """The place, as error messages name it."""
        ...

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
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


def open_store(url: str) -> Store:
    """Open a folder (plain path or ``file://``) or an object-store prefix (``s3://bucket/prefix``).

    Raises:
        InputError: The scheme is unknown or its settings are missing.
    """
    if "://" not in url:
        return FileStore(Path(url).expanduser())
    try:
        parts = urlsplit(url)
        if parts.scheme != "file":
            return ObjectStore(url, from_url(url))
    except (ObstoreError, ValueError) as error:
        raise InputError(
            f"{url}: cannot open this object store ({_first_line(error)}); expected a path, file://, s3://, "
            "gs:// or az:// with credentials in the environment"
        ) from error
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{url}: file URL names the host {parts.netloc!r}, expected file:///absolute/path")
    return FileStore(Path(unquote(parts.path)))


class FileStore:
    """A local folder; created by the first write."""

    def __init__(self, folder: Path) -> None:
        """Keep objects as files below `folder`."""
        self._folder = folder

    @property
    def url(self) -> str:
        """The folder."""
        return str(self._folder)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        path = self._path(name)
        try:
            return path.is_file()
        except OSError as error:  # a folder that may not be entered, a name that is too long
            raise InputError(f"{path}: cannot be looked up ({error.strerror})") from error

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        path = self._path(name)
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                # Before the read, so that an absurd size cannot ask for absurd memory.
                length = os.fstat(file.fileno()).st_size
                _check_range(str(path), length, offset, size)
                file.seek(offset)
                content = file.read(size)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        _check_range(str(path), offset + len(content), offset, size)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write beside, flush to the disk, rename."""
        path = self._path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)
            sync_folder(path.parent)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); choose a writable place with free space"
            ) from error

    def _path(self, name: str) -> Path:
        return self._folder / _checked(name)


class ObjectStore:
    """A prefix of an object store. Open it in the process that uses it (no fork after the first call)."""

    def __init__(self, url: str, store: Obstore) -> None:
        """Wrap an obstore store; `url` names it in messages."""
        self._url = url.rstrip("/")
        self._store = store

    @property
    def url(self) -> str:
        """The prefix."""
        return self._url

    def exists(self, name: str) -> bool:
        """Whether the object is there."""
        try:
            obstore.head(self._store, _checked(name))
        except FileNotFoundError:
            return False
        except ObstoreError as error:
            raise self._failure(name, "looked up", error) from error
        return True

    def read(self, name: str) -> bytes:
        """All bytes of an object."""
        try:
            return obstore.get(self._store, _checked(name)).bytes().to_bytes()
        except (ObstoreError, OSError) as error:
            raise self._failure(name, "read", error) from error

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`, in one range request."""
        try:
            content = obstore.get_range(self._store, _checked(name), start=offset, length=size).to_bytes()
        except (ObstoreError, OSError) as error:
            raise self._failure(name, "read", error) from error
        _check_range(f"{self._url}/{name}", offset + len(content), offset, size)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Put an object; the store makes it visible as a whole."""
        try:
            obstore.put(self._store, _checked(name), content)
        except (ObstoreError, OSError) as error:
            raise self._failure(name, "written", error) from error

    def _failure(self, name: str, what: str, error: Exception) -> InputError:
        return InputError(f"{self._url}/{name}: cannot be {what} ({_first_line(error)})")


def _checked(name: str) -> str:
    if not _OBJECT_NAME.fullmatch(name):
        raise InputError(f"object name {name[:80]!r} is not a plain relative name; the index is not ours")
    return name


def _check_range(where: str, length: int, offset: int, size: int) -> None:
    if offset < 0 or size < 0 or offset + size > length:
        raise InputError(
            f"{where}: cut short: {length} bytes found, bytes {offset} to {offset + size} expected; "
            "copy or prepare it again"
        )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
