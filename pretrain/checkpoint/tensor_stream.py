"""Files of tensors read block by block: each byte passes once, and goes into the checksum on the way.

Nothing here holds a whole file or a whole tensor, and nothing needs a local copy of a remote file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import InputError, StorageError
from data.safetensors_header import (
    LENGTH_BYTES,
    HeaderError,
    TensorEntry,
    header_length,
    parse_header,
)
from data.storage.store import Store
from pretrain.checkpoint.manifest import DTYPES, StoredFile

_BLOCK = 1 << 20  # bytes read at once from a folder
_REMOTE_BLOCK = 1 << 24  # and from an object store
_MAX_AHEAD = 2  # blocks
_HEADER_GUESS = 1 << 18

Slices = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A part of a stored tensor to be read, and the memory to copy it to.

    Attributes:
        stored_shape: Of the whole stored tensor.
        source: Part of the stored tensor, with start and stop in every dimension.
        target: Memory of that part's shape, of any dtype.
    """

    stored_shape: tuple[int, ...]
    source: Slices
    target: Tensor


def read_verified(
    store: Store, name: str, stored: StoredFile, requests: Mapping[str, Sequence[ReadRequest]]
) -> None:
    """Read a file from its first to its last byte, verify it, and copy what is requested as it passes.

    The targets' content is undefined where an error is raised.

    Args:
        store: The checkpoint.
        name: Of the file.
        stored: Its length and checksum.
        requests: Parts to copy, by the tensors' names; empty: the file is only verified.

    Raises:
        StorageError: The storage does not answer.
        InputError: The file is missing, cut short or changed, or does not hold what is requested; the message
            begins with its name.
    """
    _check_length(store, name, stored.bytes)
    stream = _Stream(store, name, stored.bytes)
    try:
        _copy_requested(stream, name, stored.bytes, requests)
    except StorageError:
        raise
    except InputError as error:
        if stream.has_checksum(stored.sha256):
            raise
        raise InputError(f"{name} differs from its checksum") from error
    finally:
        stream.close()
    if not stream.has_checksum(stored.sha256):
        raise InputError(f"{name} differs from its checksum")


def read_partially(
    store: Store, name: str, stored: StoredFile, requests: Mapping[str, Sequence[ReadRequest]]
) -> None:
    """Read only the requested rows of a file; no checksum is compared.

    Raises:
        InputError: The file is missing, cut short, or does not hold what is requested.
    """
    _check_length(store, name, stored.bytes)
    start = store.read_range(name, 0, min(_HEADER_GUESS, stored.bytes))
    length = _header_length(name, start[:LENGTH_BYTES], stored.bytes)
    text = start[LENGTH_BYTES : LENGTH_BYTES + length]
    if len(text) < length:
        text += store.read_range(name, LENGTH_BYTES + len(text), length - len(text))
    entries = _entries(name, text, stored.bytes)
    for key, of_tensor in requests.items():
        entry = _checked_entry(name, entries, key, of_tensor)
        rows, row_bytes = _rows(entry)
        rows_per_read = max(1, _block_size(store) // row_bytes)
        for request in of_tensor:
            first, last = (request.source[0].start, request.source[0].stop) if entry.shape else (0, rows)
            for row in range(first, last, rows_per_read):
                count = min(rows_per_read, last - row)
                data = store.read_range(name, entry.start + row * row_bytes, count * row_bytes)
                _copy_rows(entry, row, count, data, (request,))


class _Stream:
    """A file's bytes in order, read ahead by threads and added to a checksum."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size
        self._block = _block_size(store)
        self._pool = ThreadPoolExecutor(_MAX_AHEAD)
        self._pending: list[Future[bytes]] = []
        self._scheduled = 0  # bytes
        self._unread = memoryview(b"")
        self._digest = hashlib.sha256()

    def read(self, count: int) -> bytearray:
        """Return the next `count` bytes in memory of their own.

        Raises:
            InputError: They cannot be read.
        """
        content = bytearray(count)
        end = 0
        while end < count:
            part = self._next(count - end)
            content[end : end + len(part)] = part
            end += len(part)
        return content

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        while count:
            count -= len(self._next(count))

    def has_checksum(self, sha256: str) -> bool:
        """Read to the end; whether all bytes of the file have this checksum."""
        while len(self._unread) or self._pending or self._scheduled < self._size:
            self._next(self._size)
        return self._digest.hexdigest() == sha256

    def close(self) -> None:
        """Wait for the running reads."""
        self._pool.shutdown(cancel_futures=True)

    def _next(self, limit: int) -> memoryview:
        if not len(self._unread):
            while len(self._pending) < _MAX_AHEAD and self._scheduled < self._size:
                count = min(self._block, self._size - self._scheduled)
                self._pending.append(
                    self._pool.submit(self._store.read_range, self._name, self._scheduled, count)
                )
                self._scheduled += count
            if not self._pending:
                raise InputError(f"{self._name} ends too early")
            content = self._pending.pop(0).result()
            self._digest.update(content)
            self._unread = memoryview(content)
        part, self._unread = self._unread[:limit], self._unread[limit:]
        return part


def _copy_requested(
    stream: _Stream, name: str, size: int, requests: Mapping[str, Sequence[ReadRequest]]
) -> None:
    if not requests:
        stream.skip(size)
        return
    length = _header_length(name, bytes(stream.read(min(size, LENGTH_BYTES))), size)
    entries = _entries(name, bytes(stream.read(length)), size)
    for key, of_tensor in requests.items():
        _checked_entry(name, entries, key, of_tensor)
    for key, entry in entries.items():
        if key not in requests:
            stream.skip(entry.bytes)
            continue
        rows, row_bytes = _rows(entry)
        rows_per_read = max(1, _BLOCK // row_bytes)
        for row in range(0, rows, rows_per_read):
            count = min(rows_per_read, rows - row)
            _copy_rows(entry, row, count, stream.read(count * row_bytes), requests[key])


def _header_length(name: str, first: bytes, size: int) -> int:
    try:
        return header_length(first, size)
    except HeaderError as error:
        raise InputError(f"{name} is not a complete safetensors file ({error})") from error


def _entries(name: str, text: bytes, size: int) -> dict[str, TensorEntry]:
    """The tensors of a file by name, in the order of the file."""
    try:
        return parse_header(text, size).tensors
    except HeaderError as error:
        raise InputError(f"{name} is not a complete safetensors file ({error})") from error


def _checked_entry(
    name: str, entries: Mapping[str, TensorEntry], key: str, requests: Sequence[ReadRequest]
) -> TensorEntry:
    entry = entries.get(key)
    if (
        entry is None
        or entry.dtype not in DTYPES
        or any(request.stored_shape != entry.shape for request in requests)
    ):
        raise InputError(f"{name} does not hold {key} as the manifest says")
    return entry


def _rows(entry: TensorEntry) -> tuple[int, int]:
    """Number of rows of a stored tensor and the bytes of one."""
    rows = entry.shape[0] if entry.shape else 1
    return rows, max(1, entry.bytes // max(1, rows))


def _copy_rows(
    entry: TensorEntry, row: int, count: int, data: bytes | bytearray, requests: Sequence[ReadRequest]
) -> None:
    """Copy what is requested of `count` rows from `row` on; copying converts."""
    buffer = data if isinstance(data, bytearray) else bytearray(data)
    part = torch.frombuffer(buffer, dtype=getattr(torch, entry.dtype))
    if not entry.shape:
        for request in requests:
            request.target.copy_(part.view(()))
        return
    part = part.view(count, *entry.shape[1:])
    for request in requests:
        first, *others = request.source
        start, stop = max(first.start, row), min(first.stop, row + count)
        if start < stop:
            target = request.target[start - first.start : stop - first.start]
            target.copy_(part[(slice(start - row, stop - row), *others)])


def _check_length(store: Store, name: str, expected: int) -> None:
    size = store.size(name)
    if size is None:
        raise InputError(f"{name} is missing")
    if size != expected:
        raise InputError(f"{name} has {size} bytes, expected {expected}")


def _block_size(store: Store) -> int:
    return _REMOTE_BLOCK if "://" in store.url else _BLOCK
