"""Files of arrays, mapped into memory, so that no rank holds a private copy.

The ranks of a machine share the pages of a mapped file, and the system drops them when memory is short.
An object of an object store is first copied to an unnamed file of the temporary folder, which the system
removes with the process.
"""

from __future__ import annotations

import mmap
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.safetensors_header import HeaderError, TensorEntry, read_header
from data.storage.store import FileStore, Store

_CHUNK = 16 * 2**20
_LARGEST_HEADER = 2**20
_DTYPES = ("uint8", "int32", "int64")


def map_object(store: Store, name: str) -> mmap.mmap:
    """Map all bytes of an object for reading.

    Raises:
        InputError: It is missing, empty, cannot be read, or there is no space for the copy.
    """
    where = f"{store.url}/{name}"
    try:
        if isinstance(store, FileStore):
            with store.path(name).open("rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        size = store.size(name)
        if size is None:
            raise InputError(f"{where}: cannot be read (there is no such object)")
        with tempfile.TemporaryFile() as file:
            for offset in range(0, size, _CHUNK):
                file.write(store.read_range(name, offset, min(_CHUNK, size - offset)))
            file.flush()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # of mmap: an empty file
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be read ({reason}); copy it again") from error


def array_views(content: mmap.mmap | bytes, where: str) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file (uint8, int32 or int64; 1 or 2 dimensions), as views of its content.

    Raises:
        InputError: The content is not such a file; `where` leads the message.
    """
    try:
        tensors = read_header(content, _LARGEST_HEADER).tensors
        return {name: _view(content, name, entry) for name, entry in tensors.items()}
    except HeaderError as error:
        raise InputError(f"{where}: not a safetensors file ({error}); prepare the data set again") from error


def _view(content: mmap.mmap | bytes, name: str, entry: TensorEntry) -> NDArray[Any]:
    if entry.dtype not in _DTYPES or len(entry.shape) not in (1, 2):
        raise HeaderError(
            f"{name[:80]}: {entry.dtype} of shape {str(entry.shape)[:80]}, expected 1 or 2 dimensions of "
            f"{' or '.join(_DTYPES)}"
        )
    dtype = np.dtype(entry.dtype)
    count = entry.bytes // dtype.itemsize
    return np.frombuffer(content, dtype, count, entry.start if count else 0).reshape(entry.shape)
