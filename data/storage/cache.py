"""Episodes on the local disk, shared by all processes of a node and bounded in size.

    <dir>/ab/ab12...   sha256 of what follows (32 bytes), then one episode (`data.storage.cache_format`)
    <dir>/.writing     the one that is being written
    <dir>/.size        bytes in the folder, as 20 digits; locked (flock) while anything is written or removed

A file is named by the checksum that the index has of the episode in its shard and by its form here, so that
data sets, runs and ranks may share a folder. Whatever is read is verified, a whole file here and a part by
who asks for it, so nothing is flushed to the disk on purpose. A
process that is killed while it writes leaves `.writing`, which the next one overwrites, and a size that is
too large rather than too small; it is counted again before anything is removed.
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

from data.config import CacheConfig
from data.errors import InputError
from data.sizes import parse_bytes

_LOG = logging.getLogger(__name__)
_FOLDER = re.compile("[0-9a-f]{2}")
_NAME = re.compile("[0-9a-f]{64}")
_DIGEST = 32  # bytes
_DIGITS = 20
_KEPT = 0.9  # share of the limit that is left when room is made: a scan serves many writes


def open_cache(config: CacheConfig) -> EpisodeCache | None:
    """The cache of the settings; None where there is to be none.

    Raises:
        InputError: Not a size, or the folder cannot be made.
    """
    limit = round(parse_bytes("data.cache.size", config.size))
    return None if config.dir is None else EpisodeCache(Path(config.dir).expanduser(), limit)


class EpisodeCache:
    """Whole episodes by name. For any number of threads and processes at a time.

    Args:
        folder: Made if it is not there.
        limit: Most bytes in it; those used longest ago go first.

    Raises:
        InputError: The folder cannot be made.
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
        """What is kept under a name, or what `fetch` gives, which is kept from now on.

        A disk that fails or is full is told once on standard error; then everything is fetched.

        Args:
            name: A sha256 (64 hexadecimal digits) that determines the content.
            fetch: Gives the content; what it raises is passed on.
        """
        path = self._folder / name[:2] / name
        try:
            content = _read(path)
        except OSError as error:
            self._give_up(error)
            content = None
        if content is None:
            content = fetch()
            if not self._broken:
                try:
                    self._keep(path, content)
                except OSError as error:
                    self._give_up(error)
        return content

    def read_into(self, name: str, parts: Sequence[tuple[int, memoryview]]) -> bool:
        """Read parts of what is kept under a name; it counts as used now. They are not verified.

        Args:
            name: As for `get`.
            parts: Where in the content each begins (bytes), and what it is to fill.

        Returns:
            Whether all of them are there.
        """
        try:
            file = os.open(f"{self._folder}/{name[:2]}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._give_up(error)
            return False
        try:
            for offset, part in parts:
                if os.preadv(file, [part], _DIGEST + offset) < len(part):
                    return False
            os.utime(file)
        except OSError as error:
            self._give_up(error)
            return False
        finally:
            os.close(file)
        return True

    def _keep(self, path: Path, content: bytes) -> None:
        size = _DIGEST + len(content)
        if size > self._limit:
            return
        writing = self._folder / ".writing"
        with self._locked() as file:
            if path.exists():  # another process was faster
                return
            total = self._noted(file)
            if total + size > self._limit:
                total = self._make_room(min(round(_KEPT * self._limit), self._limit - size))
            # First, so that being killed below does not let the folder outgrow its limit.
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
        """The file with the size, while nobody else writes or removes; a killed process lets go of it."""
        file = os.open(self._folder / ".size", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _noted(self, file: int) -> int:
        digits = os.pread(file, _DIGITS, 0)
        if len(digits) == _DIGITS and digits.isdigit():
            return int(digits)
        return sum(size for _, size, _ in self._files())

    def _make_room(self, target: int) -> int:
        """Remove what was used longest ago until `target` bytes are left at most; how many they are."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= target:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
        return total

    def _files(self) -> Iterator[tuple[int, int, str]]:
        """Time of last use, bytes and path of each; files of others in the folder are none of ours."""
        with os.scandir(self._folder) as folders:
            ours = [found.path for found in folders if _FOLDER.fullmatch(found.name)]
        for folder in ours:
            with os.scandir(folder) as files:
                for file in files:
                    if not _NAME.fullmatch(file.name):
                        continue
                    try:
                        found = file.stat(follow_symlinks=False)
                    except FileNotFoundError:  # found damaged by a reader, and removed
                        continue
                    yield found.st_mtime_ns, found.st_size, file.path

    def _give_up(self, error: OSError) -> None:
        if not self._broken:
            self._broken = True
            _LOG.warning(
                "data.cache.dir=%s: %s; this process goes on without keeping episodes there",
                self._folder,
                error.strerror,
            )


def _read(path: Path) -> bytes | None:
    """The content of a file, which counts as used now; None where it is not there or is damaged."""
    try:
        record = path.read_bytes()
    except FileNotFoundError:
        return None
    content = record[_DIGEST:]
    if hashlib.sha256(content).digest() != record[:_DIGEST]:
        path.unlink(missing_ok=True)
        return None
    with suppress(FileNotFoundError):  # removed by now to make room
        os.utime(path)
    return content
