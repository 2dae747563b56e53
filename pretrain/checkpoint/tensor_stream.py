"""A file of tensors written and read block by block: each byte passes once, and its checksum with it.

Nothing here holds a whole file or a whole tensor, and nothing needs a local copy of a remote file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from data.errors import InputError
from data.storage.bulk_store import Block
from data.storage.store import Store
from pretrain.checkpoint.manifest import StoredFile
from pretrain.convert.tensor_files import Content, Entry, header_of, parse_header, tensor_blocks

_BLOCK = 1 << 20  # bytes read at once from a folder
_REMOTE_BLOCK = 1 << 24  # and from an object store
_AHEAD = 2  # blocks
_HEADER_GUESS = 1 << 18

Slices = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Take:
    """A part of a stored tensor and where it goes.

    Attributes:
        stored: Shape of the stored tensor.
        source: Part of the stored tensor, with start and stop in every dimension.
        target: Memory of that shape, of any dtype.
    """

    stored: tuple[int, ...]
    source: Slices
    target: Tensor


class TensorBlocks:
    """The bytes of a file with some tensors; length and checksum are known when all have been taken.

    Args:
        tensors: Contiguous fp32 tensors on the host, by name; not copied.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._contents = [
            Content(name, "float32", tuple(tensor.shape), partial(tensor_blocks, tensor))
            for name, tensor in tensors.items()
        ]
        self._header = header_of(self._contents)
        self._digest = hashlib.sha256()
        self.bytes = len(self._header) + sum(content.bytes for content in self._contents)

    def __iter__(self) -> Iterator[Block]:
        self._digest = hashlib.sha256()
        for block in self._all():
            self._digest.update(block)
            yield block

    def _all(self) -> Iterator[Block]:
        yield self._header
        for content in self._contents:
            yield from content.blocks()

    def stored(self) -> StoredFile:
        """Length and checksum of what was taken."""
        return StoredFile(self.bytes, self._digest.hexdigest())


def read_whole(store: Store, name: str, stored: StoredFile, takes: Mapping[str, Sequence[Take]]) -> None:
    """Read a file from its first to its last byte, verify it, and copy what is wanted as it passes.

    The targets hold nothing to rely on where an error is raised.

    Args:
        store: The checkpoint.
        name: Of the file.
        stored: Its length and checksum.
        takes: What is wanted of it, by the tensors' names; empty: it is verified alone.

    Raises:
        InputError: The file is missing, cut short or changed, or does not hold what is wanted; the message
            begins with its name.
    """
    _check_length(store, name, stored.bytes)
    stream = _Stream(store, name, stored.bytes)
    try:
        _take_all(stream, name, stored.bytes, takes)
    except InputError as error:
        if stream.verified_to_end(stored.sha256):
            raise
        raise InputError(f"{name} differs from its checksum") from error
    finally:
        stream.close()
    if not stream.verified_to_end(stored.sha256):
        raise InputError(f"{name} differs from its checksum")


def read_parts(store: Store, name: str, stored: StoredFile, takes: Mapping[str, Sequence[Take]]) -> None:
    """Read only the rows of a file that are wanted; nothing is verified but the header's form.

    Raises:
        InputError: The file is missing, cut short, or does not hold what is wanted.
    """
    _check_length(store, name, stored.bytes)
    start = store.read_range(name, 0, min(_HEADER_GUESS, stored.bytes))
    length = int.from_bytes(start[:8], "little")
    if length > stored.bytes - 8:
        raise InputError(f"{name} is not a complete safetensors file")
    text = start[8 : 8 + length]
    if len(text) < length:
        text += store.read_range(name, 8 + len(text), length - len(text))
    entries = parse_header(name, text, stored.bytes)
    for key, wanted in takes.items():
        entry = _entry(name, entries, key, wanted)
        rows, row_bytes = _rows(entry)
        chunk = max(1, _block_size(store) // row_bytes)
        for take in wanted:
            first, last = (take.source[0].start, take.source[0].stop) if entry.shape else (0, rows)
            for row in range(first, last, chunk):
                count = min(chunk, last - row)
                data = store.read_range(name, entry.start + row * row_bytes, count * row_bytes)
                _copy_rows(entry, row, count, data, (take,))


class _Stream:
    """A file's bytes in order, read ahead by threads and counted into a checksum."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._name, self._size = store, name, size
        self._block = _block_size(store)
        self._pool = ThreadPoolExecutor(_AHEAD)
        self._ahead: list[Future[bytes]] = []
        self._asked = 0
        self._rest = memoryview(b"")
        self._digest = hashlib.sha256()

    def read(self, count: int) -> bytearray:
        """The next `count` bytes in memory of their own.

        Raises:
            InputError: They cannot be read.
        """
        found = bytearray(count)
        place = 0
        while place < count:
            part = self._part(count - place)
            found[place : place + len(part)] = part
            place += len(part)
        return found

    def skip(self, count: int) -> None:
        """Pass over `count` bytes."""
        while count:
            count -= len(self._part(count))

    def verified_to_end(self, sha256: str) -> bool:
        """Whether all bytes, those not yet read included, have this checksum."""
        while len(self._rest) or self._ahead or self._asked < self._size:
            self._part(self._size)
        return self._digest.hexdigest() == sha256

    def close(self) -> None:
        """Wait for what was asked for."""
        self._pool.shutdown(cancel_futures=True)

    def _part(self, most: int) -> memoryview:
        if not len(self._rest):
            while len(self._ahead) < _AHEAD and self._asked < self._size:
                count = min(self._block, self._size - self._asked)
                self._ahead.append(self._pool.submit(self._store.read_range, self._name, self._asked, count))
                self._asked += count
            if not self._ahead:
                raise InputError(f"{self._name} ends too early")
            content = self._ahead.pop(0).result()
            self._digest.update(content)
            self._rest = memoryview(content)
        part, self._rest = self._rest[:most], self._rest[most:]
        return part


def _take_all(stream: _Stream, name: str, size: int, takes: Mapping[str, Sequence[Take]]) -> None:
    if not takes:
        stream.skip(size)
        return
    length = int.from_bytes(stream.read(8), "little")
    if length > size - 8:
        raise InputError(f"{name} is not a complete safetensors file")
    entries = parse_header(name, bytes(stream.read(length)), size)
    for key, wanted in takes.items():
        _entry(name, entries, key, wanted)
    for key, entry in entries.items():
        if key not in takes:
            stream.skip(entry.bytes)
            continue
        rows, row_bytes = _rows(entry)
        chunk = max(1, _BLOCK // row_bytes)
        for row in range(0, rows, chunk):
            count = min(chunk, rows - row)
            _copy_rows(entry, row, count, stream.read(count * row_bytes), takes[key])


def _entry(name: str, entries: Mapping[str, Entry], key: str, takes: Sequence[Take]) -> Entry:
    if key not in entries or any(take.stored != entries[key].shape for take in takes):
        raise InputError(f"{name} does not hold {key} as the manifest says")
    return entries[key]


def _rows(entry: Entry) -> tuple[int, int]:
    """Number of rows of a stored tensor and the bytes of one."""
    rows = entry.shape[0] if entry.shape else 1
    return rows, max(1, entry.bytes // max(1, rows))


def _copy_rows(entry: Entry, row: int, count: int, data: bytes | bytearray, takes: Sequence[Take]) -> None:
    """Copy what is wanted of `count` rows from `row` on; copying converts."""
    buffer = data if isinstance(data, bytearray) else bytearray(data)
    part = torch.frombuffer(buffer, dtype=getattr(torch, entry.dtype))
    if not entry.shape:
        for take in takes:
            take.target.copy_(part.view(()))
        return
    part = part.view(count, *entry.shape[1:])
    for take in takes:
        first, *others = take.source
        start, stop = max(first.start, row), min(first.stop, row + count)
        if start < stop:
            target = take.target[start - first.start : stop - first.start]
            target.copy_(part[(slice(start - row, stop - row), *others)])


def _check_length(store: Store, name: str, expected: int) -> None:
    found = store.size(name)
    if found is None:
        raise InputError(f"{name} is missing")
    if found != expected:
        raise InputError(f"{name} has {found} bytes, expected {expected}")


def _block_size(store: Store) -> int:
    return _REMOTE_BLOCK if "://" in store.url else _BLOCK
