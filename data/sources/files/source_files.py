"""The files of a source, in a folder of this machine or in an object store.

Readers name files by paths below `SourceFiles.root` and open them where they are on this machine: those of an
object store are fetched to a folder of bounded size first (`data.sources.files.spool`).
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path, PurePath, PurePosixPath
from typing import Protocol

from data.config import SourceConfig
from data.errors import InputError, StorageError
from data.sizes import parse_bytes
from data.sources.files.hub_cache import dataset_name, snapshot
from data.sources.files.spool import Spool
from data.storage.object_store import ObjectStore
from data.storage.store import FileStore, open_store
from data.storage.store_errors import NO_CREDENTIALS

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
TAR_SUFFIX = ".tar"


class StorePath(PurePosixPath):
    """The address of an object, with the arithmetic of paths: `s3://bucket/folder/file`."""

    def __str__(self) -> str:
        """With both slashes after the scheme, of which paths keep one."""
        return super().__str__().replace(":/", "://", 1)


class SourceFiles(Protocol):
    """Files below one root. Paths given and returned are below it."""

    @property
    def root(self) -> PurePath:
        """The folder or prefix."""
        ...

    @property
    def name(self) -> str:
        """Name of the data set, by its folder."""
        ...

    def is_file(self, path: PurePath) -> bool:
        """Whether the file is there."""
        ...

    def files(self, folder: PurePath, recursive: bool = False) -> list[PurePath]:
        """The files in a folder, by name, with `recursive` also further below; hidden ones are left out."""
        ...

    def read(self, path: PurePath, expected: str) -> bytes:
        """All bytes of a file (InputError: it is not there; `expected` is what should be)."""
        ...

    @contextmanager
    def opened(self, path: PurePath) -> Generator[Path]:
        """Yield where the file is on this machine while it is read; InputErrors of the block name `path`.

        Where there is none, that place does not exist either.
        """
        ...

    def state(self, path: PurePath) -> list[object]:
        """Name and size of a file, and what changes with its content: time of its last change, or ETag.

        Raises:
            InputError: There is no such file.
        """
        ...

    def close(self) -> None:
        """Remove what was fetched; files can still be opened."""
        ...


def open_files(config: SourceConfig) -> SourceFiles:
    """The files of `config.source`. A tar file, and a pattern of some, is a file of its folder.

    Raises:
        InputError: The settings of the store or of the spool cannot be used, or a folder of the hub's cache
            has no snapshot.
    """
    folder, _ = folder_and_pattern(config.source)
    if "://" not in folder:
        return LocalFiles(Path(folder).expanduser())
    size = round(parse_bytes("spool.size", config.spool.size))
    spool = Spool(Path(config.spool.dir).expanduser() if config.spool.dir else None, size)
    store = open_store(folder, anonymous=config.anonymous)
    if isinstance(store, FileStore):  # file://
        return LocalFiles(Path(store.url))
    assert isinstance(store, ObjectStore)
    if config.spool.dir:
        spool.check()
    return StoreFiles(store, spool)


def folder_and_pattern(source: str) -> tuple[str, str | None]:
    """Divide a source into its folder and, where it names tar files, their names (with braces).

    A folder that exists is one, whatever its name.
    """
    if "://" not in source and Path(source).expanduser().is_dir():
        return source, None
    before, brace, _ = source.partition("{")
    if not brace and not source.endswith(TAR_SUFFIX):
        return source, None
    folder, slash, _ = before.rpartition("/")
    return (folder or "/") if slash else ".", source[len(folder) + len(slash) :]


def naming(error: InputError, place: Path, path: PurePath) -> InputError:
    """The error of a file that lies at `place`, with the path by which the user knows it."""
    named = type(error)(str(error).replace(str(place), str(path)))
    named.__dict__.update(error.__dict__)
    return named


class LocalFiles:
    """A folder of a file system; one of the hub's cache stands for its snapshot, whose links are followed."""

    def __init__(self, folder: Path) -> None:
        self._name = dataset_name(folder)
        self._folder = snapshot(folder)
        self.root: PurePath = self._folder

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self._name or self._folder.absolute().name

    def is_file(self, path: PurePath) -> bool:
        """Whether the file is there."""
        return Path(path).is_file()

    def files(self, folder: PurePath, recursive: bool = False) -> list[PurePath]:
        """The files in a folder; none where there is no such folder."""
        found = Path(folder).rglob("*") if recursive else Path(folder).glob("*")
        try:
            return sorted(path for path in found if not path.name.startswith(".") and path.is_file())
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed ({error.strerror}); make it readable") from error

    def read(self, path: PurePath, expected: str) -> bytes:
        """All bytes of a file."""
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); expected {expected}") from error

    @contextmanager
    def opened(self, path: PurePath) -> Generator[Path]:
        """Yield the file itself."""
        yield Path(path)

    def state(self, path: PurePath) -> list[object]:
        """Name, size and time of a file."""
        return file_state(path)

    def close(self) -> None:
        """Do nothing: files are where they are."""


def file_state(path: PurePath) -> list[object]:
    """Name, size and time of a file of this machine (InputError: there is none)."""
    try:
        status = Path(path).stat()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be looked up ({error.strerror}); copy the demonstrations again"
        ) from error
    return [path.name, status.st_size, status.st_mtime_ns]


class StoreFiles:
    """A prefix of an object store.

    Args:
        store: Reads the objects. Each is read in one version: one that is replaced meanwhile is refused.
        spool: Receives the files that are opened.
    """

    def __init__(self, store: ObjectStore, spool: Spool) -> None:
        self._store, self._spool = store, spool
        self.root: PurePath = StorePath(store.url)
        self._states: dict[str, tuple[int, str | None] | None] = {}

    @property
    def name(self) -> str:
        """The last part of the prefix."""
        return self.root.name

    def is_file(self, path: PurePath) -> bool:
        """Whether the object is there; asked once."""
        return self._state(self._name_of(path)) is not None

    def files(self, folder: PurePath, recursive: bool = False) -> list[PurePath]:
        """The objects in a folder."""
        below = folder.relative_to(self.root).as_posix()
        paths = [self.root / name for name in self._store.names("" if below == "." else below, recursive)]
        return sorted(path for path in paths if not path.name.startswith("."))

    def read(self, path: PurePath, expected: str) -> bytes:
        """All bytes of an object."""
        name = self._name_of(path)
        if self._state(name) is None:
            raise InputError(f"{path}: cannot be read (no such object); expected {expected}")
        return self._store.read(name)

    @contextmanager
    def opened(self, path: PurePath) -> Generator[Path]:
        """Fetch an object to the spool."""
        name = self._name_of(path)
        state = self._state(name)
        if state is None:
            place = self._spool.missing(name)
        else:
            place = self._spool.place(name, state[0], lambda begin, size: self._range(name, begin, size))
        try:
            yield place
        except InputError as error:
            raise naming(error, place, path) from error

    def state(self, path: PurePath) -> list[object]:
        """Name, size and ETag of an object."""
        state = self._state(self._name_of(path))
        if state is None:
            raise InputError(f"{path}: cannot be looked up (no such object); copy the demonstrations again")
        return [path.name, *state]

    def close(self) -> None:
        """Remove the files that were fetched."""
        self._spool.close()

    def _range(self, name: str, begin: int, size: int) -> bytes:
        return self._store.read_range(name, begin, size)

    def _name_of(self, path: PurePath) -> str:
        """The object's name below the root (InputError: it has characters that stores disagree on)."""
        name = path.relative_to(self.root).as_posix()
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{path}: a name with other characters than letters, digits and `_-.`, expected only these "
                "below the source; rename the object"
            )
        return name

    def _state(self, name: str) -> tuple[int, str | None] | None:
        """Size and ETag of an object, None where there is none; asked once."""
        if name not in self._states:
            try:
                self._states[name] = self._store.size_and_etag(name)
            except StorageError as error:
                if NO_CREDENTIALS not in str(error):
                    raise
                raise StorageError(f"{error}; or set anonymous=true, if the data are public") from error
        return self._states[name]
