"""Episodes on the local disk, shared by all processes of a node and bounded in size.

    <dir>/ab/ab12...   sha256 of the rest (32 bytes), then one episode (`data.storage.cached_episodes`)
    <dir>/.writing     the file that is being written
    <dir>/.size        bytes in the folder, as 20 digits; locked (flock) during every write and removal

The name of a file is derived from the checksum that the index has of the episode in its shard and from the
format of the file, so that data sets, runs and ranks may share a folder. All reads are verified: a whole
file here, a part by the caller; so nothing is flushed to the disk. A process that is killed during a write
leaves `.writing`, which the next one overwrites, and a size that is too large rather than too small; it is
counted again before anything is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from data.errors import InputError
from data.sizes import parse_bytes

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

    Raises:
        InputError: The folder cannot be created.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder, limit
        self._broken = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"data.cache.dir={folder}: cannot be made ({error.strerror}); choose a folder on a local disk"
            ) from error

    def get(self, name: str, fetch: Callable[[], bytes]) -> bytes:
        """Read the content of a name, or fetch and store it.

        A disk that fails or is full is reported once on standard error; then everything is fetched.

        Args:
            name: A sha256 (64 hexadecimal digits) that determines the content.
            fetch: Returns the content; its exceptions are passed on.
        """
        path = self._folder / name[:2] / name
        try:
            content = _read(path)
        except OSError as error:
            self._report_failure(error)
            content = None
        if content is None:
            content = fetch()
            if not self._broken:
                try:
                    self._store(path, content)
                except OSError as error:
                    self._report_failure(error)
        return content

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

    def _store(self, path: Path, content: bytes) -> None:
        size = _DIGEST + len(content)
        if size > self._limit:
            return
        writing = self._folder / ".writing"
        with self._locked() as file:
            if path.exists():  # another process was faster
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
    def _locked(self) -> Generator[int]:
        """The file with the size, while no other process writes or removes; a killed process releases it."""
        file = os.open(self._folder / ".size", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _total_size(self, file: int) -> int:
        """Bytes in the folder: the number in `.size`, counted again where there is no valid one."""
        digits = os.pread(file, _DIGITS, 0)
        if len(digits) == _DIGITS and digits.isdigit():
            return int(digits)
        return sum(size for _, size, _ in self._files())

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
                "data.cache.dir=%s: %s; this process continues without storing episodes there",
                self._folder,
                error.strerror,
            )


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
