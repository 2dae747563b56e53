"""Stores for checkpoints: listing, uploads of any size, deletion.

`data.storage.store` reads objects and writes small ones; this module adds the rest. A failed write is an
OSError for every kind of store, so that one `except` serves a full disk and a server that is down.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import obstore
from obstore.exceptions import BaseError as ObstoreError
from obstore.store import ObjectStore as Obstore

from data.errors import InputError
from data.files import sync_folder, write_whole
from data.storage.contact import mark_answered
from data.storage.object_store import ObjectStore, connect
from data.storage.store import FileStore, open_store
from data.storage.store_errors import describe_error

Block = bytes | memoryview

_MIN_PART = 1 << 24  # bytes of one part of an upload
_MAX_PARTS = 9_000  # S3 allows 10,000
_CONCURRENT_PARTS = 4


class BulkStore(Protocol):
    """Objects below one URL that are listed, written at any size and removed."""

    @property
    def url(self) -> str:
        """The URL or folder, as error messages name it."""
        ...

    def folders(self) -> list[str]:
        """Names of the first level below which there are objects, ascending."""
        ...

    def names(self, folder: str) -> list[str]:
        """Names of all objects below a folder, relative to it, ascending; empty where there are none."""
        ...

    def write_blocks(self, name: str, blocks: Iterable[Block], size: int) -> None:
        """Write an object block by block; it is durable when this returns.

        Args:
            name: Relative to the URL.
            blocks: The object's bytes, in order.
            size: Number of bytes.

        Raises:
            OSError: The write failed; a folder may hold a part of the object.
        """
        ...

    def put(self, name: str, content: bytes) -> None:
        """Write a small object durably as a whole: readers see the old bytes or the new ones.

        Raises:
            OSError: The request failed.
        """
        ...

    def remove(self, folder: str, names: Sequence[str]) -> None:
        """Remove objects of a folder, the first of `names` before the others, then the empty folder.

        Missing objects are no error.

        Raises:
            OSError: The request failed.
        """
        ...


def open_bulk(url: str) -> BulkStore:
    """Open a folder (plain path or ``file://``) or an object-store prefix (``s3://bucket/prefix``).

    Raises:
        InputError: The scheme is unknown or its settings are missing.
    """
    store = open_store(url)
    if isinstance(store, FileStore):
        return BulkFolder(Path(store.url))
    return BulkObjects(store.url, connect(store.url), store if isinstance(store, ObjectStore) else None)


class BulkFolder:
    """A local folder; created by the first write."""

    def __init__(self, folder: Path) -> None:
        """Store objects as files below `folder`."""
        self._folder = folder

    @property
    def url(self) -> str:
        """The folder."""
        return str(self._folder)

    def folders(self) -> list[str]:
        """Names of the folders below it."""
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self._folder}: cannot be listed ({error.strerror})") from error

    def names(self, folder: str) -> list[str]:
        """Names of the files of a folder."""
        try:
            return sorted(path.name for path in (self._folder / folder).iterdir() if not path.is_dir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(f"{self._folder / folder}: cannot be listed ({error.strerror})") from error

    def write_blocks(self, name: str, blocks: Iterable[Block], size: int) -> None:
        """Write the file and flush it and its folder to the disk."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if (written := path.stat().st_size) != size:
            raise OSError(f"{path}: {written} bytes were written, {size} expected")
        sync_folder(path.parent)
        sync_folder(self._folder)

    def put(self, name: str, content: bytes) -> None:
        """Write a temporary file, flush it to the disk, rename it."""
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        sync_folder(path.parent)

    def remove(self, folder: str, names: Sequence[str]) -> None:
        """Remove the files, then the folder if it is empty."""
        path = self._folder / folder
        for name in names:
            (path / name).unlink(missing_ok=True)
        try:
            path.rmdir()
        except OSError as error:  # others may remove theirs at the same time
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


class BulkObjects:
    """A prefix of an object store. Open it in the process that uses it (no fork after the first call)."""

    def __init__(self, url: str, store: Obstore, objects: ObjectStore | None = None) -> None:
        """Wrap an obstore store; `url` names it in messages.

        Before the first listing `objects` checks the connection: obstore itself would retry for minutes
        without TLS.
        """
        self._url = url.rstrip("/")
        self._store = store
        self._objects = objects

    @property
    def url(self) -> str:
        """The prefix."""
        return self._url

    def folders(self) -> list[str]:
        """First parts of the objects' names."""
        self._check_connection()
        try:
            listed = obstore.list_with_delimiter(self._store)  # pyright: ignore[reportUnknownMemberType] - Arrow
        except (ObstoreError, OSError) as error:
            raise InputError(f"{self._url}: cannot be listed ({describe_error(self._url, error)})") from error
        mark_answered(self._url)
        return sorted(prefix.rstrip("/") for prefix in listed["common_prefixes"])

    def names(self, folder: str) -> list[str]:
        """Names of the objects below a folder."""
        self._check_connection()
        try:
            return self._list(folder)
        except (ObstoreError, OSError) as error:
            raise InputError(
                f"{self._url}/{folder}: cannot be listed ({describe_error(self._url, error)})"
            ) from error

    def write_blocks(self, name: str, blocks: Iterable[Block], size: int) -> None:
        """Upload by one request where one part is enough, else in parts and see that they are there.

        The store makes the object visible as a whole, at the end.
        """
        if size <= _MIN_PART:
            content = b"".join(blocks)
            self._check_length(name, len(content), size)
            self.put(name, content)
            return
        part = max(_MIN_PART, -(-size // _MAX_PARTS))
        try:
            obstore.put(
                self._store,
                name,
                iter(blocks),
                use_multipart=True,
                chunk_size=part,
                max_concurrency=_CONCURRENT_PARTS,
            )
            written = obstore.head(self._store, name)["size"]
            mark_answered(self._url)
        except (ObstoreError, OSError) as error:
            raise self._failure(name, "written", error) from error
        self._check_length(name, written, size)

    def put(self, name: str, content: bytes) -> None:
        """Put an object; the store makes it visible as a whole."""
        try:
            obstore.put(self._store, name, content, use_multipart=False)  # else from 5 MB on
            mark_answered(self._url)
        except (ObstoreError, OSError) as error:
            raise self._failure(name, "written", error) from error

    def remove(self, folder: str, names: Sequence[str]) -> None:
        """Remove the first object alone, then the others in bulk."""
        try:
            for part in (names[:1], names[1:]):
                self._delete(folder, part)
        except (ObstoreError, OSError) as error:
            raise self._failure(folder, "removed", error) from error

    def _check_connection(self) -> None:
        if self._objects is not None:
            self._objects.check_connection()

    def _delete(self, folder: str, names: Sequence[str]) -> None:
        """Delete in bulk. A store that reports a missing object may have left others: repeat with these."""
        left: list[str] = list(names)
        while left:
            try:
                obstore.delete(self._store, [f"{folder}/{name}" for name in left])
                return
            except FileNotFoundError:
                existing = set(self._list(folder))
                remaining = [name for name in left if name in existing]
                if len(remaining) == len(left):
                    raise
                left = remaining

    def _list(self, folder: str) -> list[str]:
        parts = list(obstore.list(self._store, prefix=folder))  # pyright: ignore[reportUnknownMemberType] - Arrow
        mark_answered(self._url)
        return sorted(meta["path"].removeprefix(f"{folder}/") for part in parts for meta in part)

    def _check_length(self, name: str, written: int, size: int) -> None:
        if written != size:
            raise OSError(f"{self._url}/{name}: {written} bytes were written, {size} expected")

    def _failure(self, name: str, what: str, error: Exception) -> OSError:
        return OSError(f"{self._url}/{name}: cannot be {what} ({describe_error(self._url, error)})")
