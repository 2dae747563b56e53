"""Files of an object store on the local disk while they are read, in a folder of bounded size."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from data.errors import InputError
from data.files import naming_full_disk, private_folder

_BLOCK = 1 << 24  # bytes of one request, and of memory


class Spool:
    """A private folder that holds the files used last. For one thread of one process.

    It is made when the first file comes (or by `check`), and removed by `close`, or at the process's end;
    where that is killed, by the next process that makes one there (`data.files.private_folder`). A file that
    is removed while it is open can still be read: its space is freed when it is closed.

    Args:
        parent: Where the folder is made; None: the folder of temporary files.
        size: Largest number of bytes in it.
    """

    def __init__(self, parent: Path | None, size: int) -> None:
        self._parent, self._size = parent, size
        self._folder: Path | None = None
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the least recently used first

    def check(self) -> None:
        """Make the folder now: where it cannot be made, no file is at fault.

        Raises:
            InputError: It cannot be made.
        """
        self._path("")

    def place(self, name: str, size: int, fetch: Callable[[int, int], bytes]) -> Path:
        """Where a file lies, after it was fetched if need be; it stays until another one is fetched.

        Args:
            name: Of the file; the same name is the same content.
            size: Its number of bytes.
            fetch: Reads bytes of it, by offset and number.

        Raises:
            InputError: It is larger than the spool, or `fetch` failed.
            OSError: It cannot be written.
        """
        path = self._path(name)
        if name in self._sizes:
            self._sizes.move_to_end(name)
            return path
        if size > self._size:
            raise InputError(
                f"{name}: {size} bytes, the spool holds {self._size}; set spool.size to more than the "
                "source's largest file, and spool.dir to a disk with that much space"
            )
        while sum(self._sizes.values()) + size > self._size:
            oldest, _ = self._sizes.popitem(last=False)
            shutil.rmtree(self._path(oldest).parent)
        path.parent.mkdir(exist_ok=True)
        try:
            with naming_full_disk(path), path.open("wb") as file:
                for offset in range(0, size, _BLOCK):
                    file.write(fetch(offset, min(_BLOCK, size - offset)))
        except BaseException:
            shutil.rmtree(path.parent)
            raise
        self._sizes[name] = size
        return path

    def close(self) -> None:
        """Remove the folder; another one is made if a file comes again."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = None
        self._sizes.clear()

    def missing(self, name: str) -> Path:
        """Where a file would lie that does not exist."""
        return self._path(name)

    def _path(self, name: str) -> Path:
        """In a folder of its own: programs that read the file see its name, other files do not disturb."""
        if self._folder is None:
            parent = self._parent or Path(tempfile.gettempdir())
            try:
                self._folder = private_folder(parent, "worldvla-spool")
            except OSError as error:
                raise InputError(
                    f"{parent}: no folder can be made there ({error.strerror}); set spool.dir to another one"
                ) from error
        return self._folder / hashlib.sha256(name.encode()).hexdigest()[:16] / name.rpartition("/")[2]
