"""Files of arrays, mapped into memory, so that no rank holds a private copy.

The ranks of a machine share the pages of a mapped file, and the system drops them when memory is short.
An object of an object store is first copied to an unnamed file of the temporary folder, which the system
removes with the process.
"""

from __future__ import annotations

import json
import mmap
import tempfile
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.storage.store import FileStore, Store

_CHUNK = 16 * 2**20
_LARGEST_HEADER = 2**20
_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64}


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
    """The arrays of a safetensors file, as views of its content.

    The format: 8 bytes with the header's length (little endian), the header, which is a JSON object
    ``{name: {"dtype": "I32", "shape": [3], "data_offsets": [0, 12]}}``, then the arrays' bytes.

    Raises:
        InputError: The content is not such a file, or an array reaches out of it; `where` leads the message.
    """
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= min(_LARGEST_HEADER, len(content) - 8):
        raise _broken(where, f"header of {size} bytes in {len(content)}")
    try:
        header: object = json.loads(content[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise _broken(where, str(error)) from error
    if not isinstance(header, dict):
        raise _broken(where, "header is no JSON object")
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in cast("dict[str, object]", header).items():
        if name != "__metadata__":
            arrays[name] = _view(content, 8 + size, entry, f"{where}: {name[:80]}")
    return arrays


def _view(content: mmap.mmap | bytes, start: int, entry: object, where: str) -> NDArray[Any]:
    fields = cast("dict[str, Any]", entry if isinstance(entry, dict) else {})
    shape, offsets = fields.get("shape"), fields.get("data_offsets")
    dtype = _DTYPES.get(str(fields.get("dtype")))
    if dtype is None or not _sizes(shape, (1, 2)) or not _sizes(offsets, (2,)):
        raise _broken(where, f"array of {str(fields)[:100]}")
    begin, end = cast("list[int]", offsets)
    count = 1
    for side in cast("list[int]", shape):
        count *= side
    if not begin <= end <= len(content) - start or end - begin != count * np.dtype(dtype).itemsize:
        raise _broken(where, f"bytes {begin} to {end} of {len(content) - start} for shape {shape}")
    return np.frombuffer(content, dtype, count, start + begin if count else 0).reshape(shape)


def _sizes(value: object, lengths: tuple[int, ...]) -> bool:
    """Whether it is a list, of one of these lengths, of whole numbers that can be sizes."""
    if not isinstance(value, list) or len(cast("list[object]", value)) not in lengths:
        return False
    return all(type(side) is int and 0 <= side < 1 << 48 for side in cast("list[object]", value))


def _broken(where: str, found: str) -> InputError:
    return InputError(f"{where}: not a safetensors file ({found}); prepare the data set again")
