"""Episodes on the local disk, shared by all processes of a node and bounded in size.

    <dir>/ab/ab12...   sha256 of the rest (32 bytes), then one episode (`data.storage.cached_episodes`)
    <dir>/.writing     the file that is being written
    <dir>/.size        bytes in the folder, as 20 digits; locked (flock) during every write and removal
    <dir>/.fetching    empty; a byte of it is locked for each episode that a process fetches
                       (`data.storage.fetch_locks`)

The name of a file is derived from the checksum that the index has of the episode in its shard and from the
format of the file, so that data sets, runs and ranks may share a folder. All reads are verified: a whole
file here, a part by the caller; so nothing is flushed to the disk. A process that is killed during a write
leaves `.writing`, which the next one overwrites, and a size that is too large rather than too small; it is
counted again before anything is removed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from data.errors import InputError
from data.sizes import parse_bytes
from data.storage.fetch_locks import FetchLocks, deadline, keep_trying, try_flock

_LOG = logging.getLogger(__name__)
_FOLDER = re.compile("[0-9a-f]{2}")
_NAME = re.compile("[0-9a-f]{64}")
_DIGEST = 32  # bytes
_DIGITS = 20
_FULL_SHARE = 0.9  # of the limit that remains after a removal, so that one scan serves many writes


def open_cache(folder: str | None, size: str) -> EpisodeCache | None:
    """Open the cache of the settings `data.cache.dir` and `data.cache.size`; None: there is no folder.

    Args:
        folder: The folder; None: no cache.
        size: Largest number of bytes, such as `200GB`.

    Raises:
        InputError: Not a size, or the folder cannot be created.
    """
    limit = round(parse_bytes("data.cache.size", size))
    return None if folder is None else EpisodeCache(Path(folder).expanduser(), limit)


class EpisodeCache:
    """Whole episodes by name; for any number of threads and processes at a time.

    Args:
        folder: Created where it does not exist.
        limit: Largest number of bytes in it; the least recently used files are removed first.
        name: The cache in messages; None: the setting of the folder.

    Raises:
        InputError: The folder cannot be created.
    """

    def __init__(self, folder: Path, limit: int, name: str | None = None) -> None:
        self._folder, self._limit = folder, limit
        self._name = name or f"data.cache.dir={folder}"
        self._broken = False
        self._fetching = FetchLocks(folder / ".fetching")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self._name}: cannot be made ({error.strerror}); choose a folder on a local disk"
            ) from error

    def get(
        self, names: Sequence[str], fetch: Callable[[list[int]], list[bytes | InputError]]
    ) -> list[bytes | InputError]:
        """Read the contents of names, or fetch and store those that are missing.

        Of several processes and threads that want a name at the same time one fetches it, and the others
        wait and read it then. A disk that fails or is full is reported once on standard error; then
        everything is fetched.

        Args:
            names: Each a sha256 (64 hexadecimal digits) that determines the content.
            fetch: Returns the contents of the names with these numbers, or the errors of single ones, which
                are passed on; so are its exceptions.

        Returns:
            In the order of `names`.
        """
        found: dict[int, bytes | InputError] = {}
        self._read_present(names, range(len(names)), found)
        missing = [number for number in range(len(names)) if number not in found]
        if missing:
            with self._only_here([names[number] for number in missing]):
                self._read_present(names, missing, found)  # what another one has fetched meanwhile
                missing = [number for number in missing if number not in found]
                for number, content in zip(missing, fetch(missing) if missing else (), strict=True):
                    found[number] = content
                    if not isinstance(content, InputError):
                        self._store(names[number], content)
        return [found[number] for number in range(len(names))]

    def cancel_waits(self) -> None:
        """Wait for no other process any longer; the cache can still be used. For any thread."""
        self._fetching.cancel()

    def close(self) -> None:
        """Use the cache no longer."""
        self.cancel_waits()

    def read_into(self, name: str, parts: Sequence[tuple[int, memoryview]]) -> bool:
        """Read parts of the content of a name, which counts as a use. They are not verified.

        Args:
            name: As for `get`.
            parts: Offset of each part in the content (bytes), and the memory that it fills.

        Returns:
            Whether all of them could be read.
        """
        try:
            file = os.open(f"{self._folder}/{name[:2]}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._report_failure(error)
            return False
        try:
            for offset, part in parts:
                if os.preadv(file, [part], _DIGEST + offset) < len(part):
                    return False
            os.utime(file)
        except OSError as error:
            self._report_failure(error)
            return False
        finally:
            os.close(file)
        return True

    def _read_present(
        self, names: Sequence[str], numbers: Iterable[int], found: dict[int, bytes | InputError]
    ) -> None:
        """Add the contents that are there to `found`."""
        for number in numbers:
            try:
                content = _read(self._path(names[number]))
            except OSError as error:
                self._report_failure(error)
                return
            if content is not None:
                found[number] = content

    @contextmanager
    def _only_here(self, names: Sequence[str]) -> Generator[None]:
        """Hold the locks of names for the length of a `with` block, unless the disk fails."""
        with ExitStack() as stack:
            if not self._broken:
                try:
                    stack.enter_context(self._fetching.held(names))
                except OSError as error:
                    self._report_failure(error)
            yield

    def _store(self, name: str, content: bytes) -> None:
        """Store a content, unless the disk fails."""
        if not self._broken:
            try:
                self._write(self._path(name), content)
            except OSError as error:
                self._report_failure(error)

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name

    def _write(self, path: Path, content: bytes) -> None:
        size = _DIGEST + len(content)
        if size > self._limit:
            return
        writing = self._folder / ".writing"
        with self._locked() as file:
            if file is None or path.exists():  # another process was faster
                return
            total = self._total_size(file)
            if total + size > self._limit:
                total = self._make_room(min(round(_FULL_SHARE * self._limit), self._limit - size))
            # First, so that a process killed below does not let the folder exceed its limit.
            os.pwrite(file, f"{total + size:0{_DIGITS}}".encode(), 0)
            try:
                path.parent.mkdir(exist_ok=True)
                writing.write_bytes(hashlib.sha256(content).digest() + content)
                writing.replace(path)
            except OSError:
                writing.unlink(missing_ok=True)
                raise

    @contextmanager
    def _locked(self) -> Generator[int | None]:
        """The file with the size, while no other process writes or removes; a killed process releases it.

        None: it is held, and nobody is waited for any longer (`cancel_waits`).

        Raises:
            TimeoutError: It is held all of `fetch_locks.PATIENCE`: a process was stopped during a write.
        """
        file = os.open(self._folder / ".size", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            cancelled = self._fetching.cancelled
            if keep_trying(partial(try_flock, file, fcntl.LOCK_EX), deadline(), cancelled):
                yield file
            elif cancelled.is_set():
                yield None
            else:
                raise TimeoutError(errno.ETIMEDOUT, "another process holds the lock of .size and is stopped")
        finally:
            os.close(file)

    def _total_size(self, file: int) -> int:
        """Bytes in the folder: the number in `.size`, counted again where there is no valid one."""
        size = _parse_size(os.pread(file, _DIGITS, 0))
        return sum(size for _, size, _ in self._files()) if size is None else size

    def _make_room(self, target: int) -> int:
        """Remove the least recently used files until at most `target` bytes remain; return their number."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= target:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        return total

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """Time of last use (ns), bytes and path of each episode; other files in the folder are ignored."""
        with os.scandir(self._folder) as entries:
            folders = [entry.path for entry in entries if _FOLDER.fullmatch(entry.name)]
        for folder in folders:
            with os.scandir(folder) as files:
                for file in files:
                    if not _NAME.fullmatch(file.name):
                        continue
                    try:
                        status = file.stat(follow_symlinks=False)
                    except FileNotFoundError:  # a reader removed a damaged file
                        continue
                    yield status.st_mtime_ns, status.st_size, file.path

    def _report_failure(self, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            _LOG.warning(
                "%s: %s; this process continues without storing episodes there: end what is in the way, "
                "or set data.cache.dir to a folder on a local disk with room that this user may write to",
                self._name,
                error.strerror,
            )


def stored_bytes(folder: Path) -> int:
    """Bytes in the folder of a cache, as far as they have been counted; 0 where there is none."""
    try:
        return _parse_size((folder / ".size").read_bytes()) or 0
    except FileNotFoundError:
        return 0


def _parse_size(digits: bytes) -> int | None:
    """The number in `.size`; None: it is not valid."""
    return int(digits) if len(digits) == _DIGITS and digits.isdigit() else None


def _read(path: Path) -> bytes | None:
    """Read a file's content, which counts as a use; None where it is missing or damaged."""
    try:
        record = path.read_bytes()
    except FileNotFoundError:
        return None
    content = record[_DIGEST:]
    if hashlib.sha256(content).digest() != record[:_DIGEST]:
        path.unlink(missing_ok=True)
        return None
    with suppress(FileNotFoundError):  # another process removed it to make room
        os.utime(path)
    return content
