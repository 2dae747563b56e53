"""Safetensors files read and written block by block, so that no more than a block is in memory.

The format: 8 bytes (little endian) with the length of the header, the header in JSON (name -> dtype,
shape and [begin, end) within the data), the data. See https://github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data.errors import InputError

BLOCK = 1 << 22
_WORDS = 1 << 16  # looked at together, so that what is made of them stays in the cache
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_NAMES = {code: name for name, code in _CODES.items()}
_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
_EXPONENTS = {"float32": 0x7F80_0000, "bfloat16": 0x7F80, "float16": 0x7C00}  # all ones: infinite or NaN


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file.

    Attributes:
        dtype: `float32`, `bfloat16` or `float16`.
        shape: Of the tensor.
        start: Its first byte in the file.
        bytes: Their number.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Content:
    """A tensor to be written.

    Attributes:
        name: Of the tensor.
        dtype: As in `Entry`.
        shape: Of the tensor.
        blocks: Makes its bytes, in row-major order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[bytes | memoryview]]

    @property
    def bytes(self) -> int:
        """Length of the tensor."""
        return bytes_of(self.dtype, self.shape)


class TensorFile:
    """A safetensors file whose header was checked.

    Args:
        path: Of the file.

    Attributes:
        path: Of the file.
        entries: Its tensors by name.

    Raises:
        InputError: It cannot be read, is no complete safetensors file, or holds other than floats of 16
            or 32 bits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="pt"):
                pass  # the library checks lengths, gaps, overlaps and what the shapes make of them
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length), object_pairs_hook=_unique)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        except (SafetensorError, ValueError, RecursionError) as error:
            raise InputError(
                f"{path}: not a complete safetensors file ({error}); download or write it again"
            ) from error
        header.pop("__metadata__", None)
        self.entries = {name: self._entry(name, values, 8 + length) for name, values in header.items()}

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor, piece by piece."""
        entry = self.entries[name]
        left = entry.bytes
        try:
            with self.path.open("rb") as file:
                file.seek(entry.start)
                while left and (block := file.read(min(BLOCK, left))):
                    left -= len(block)
                    yield block
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error})") from error
        if left:
            raise InputError(f"{self.path}: ends before {name} does; was it changed meanwhile?")

    def tensor(self, name: str) -> Tensor:
        """A tensor in memory of its own."""
        entry = self.entries[name]
        found = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
        place, view = 0, _view(found)
        for block in self.blocks(name):
            view[place : place + len(block)] = block
            place += len(block)
        return found

    def _entry(self, name: str, values: dict[str, Any], data: int) -> Entry:
        if values["dtype"] not in _NAMES:
            raise InputError(
                f"{self.path}: {name} is of dtype {values['dtype']}, expected one of {', '.join(_NAMES)}; "
                "save it as one of these (quantised weights: convert them back first)"
            )
        begin, end = values["data_offsets"]
        return Entry(_NAMES[values["dtype"]], tuple(values["shape"]), data + begin, end - begin)


def write_tensors(path: Path, contents: Sequence[Content], done: Callable[[int], None]) -> None:
    """Write a file and wait until it is on the disk.

    Args:
        path: New file.
        contents: Its tensors, in the order of the file; wide dtypes first keep all aligned.
        done: Told the number of bytes after each block.
    """
    with path.open("wb") as file:
        file.write(header_of(contents))
        for content in contents:
            _write_blocks(file, content, done)
        file.flush()
        os.fsync(file.fileno())


def header_of(contents: Sequence[Content]) -> bytes:
    """The bytes of a file before its data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for content in contents:
        offsets = [place, place := place + content.bytes]
        header[content.name] = {
            "dtype": _CODES[content.dtype],
            "shape": list(content.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def parse_header(where: str, text: bytes, size: int) -> dict[str, Entry]:
    """The tensors of a file by name, in the order of the file.

    Args:
        where: For messages.
        text: The header without its length.
        size: Bytes of the whole file.

    Raises:
        InputError: The header is none, or does not tell of every byte of the file once.
    """
    try:
        header = json.loads(text, object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        entries = {
            name: Entry(
                _NAMES[values["dtype"]],
                tuple(map(int, values["shape"])),
                8 + len(text) + int(values["data_offsets"][0]),
                int(values["data_offsets"][1]) - int(values["data_offsets"][0]),
            )
            for name, values in header.items()
        }
        place = 8 + len(text)
        for entry in sorted(entries.values(), key=lambda entry: entry.start):
            if entry.start != place or entry.bytes != bytes_of(entry.dtype, entry.shape):
                raise ValueError(f"a gap or an overlap at byte {place}")
            place += entry.bytes
        if place != size:
            raise ValueError(f"tells of {place} bytes, the file has {size}")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise InputError(f"{where}: not a complete safetensors file ({error!r})") from error
    return dict(sorted(entries.items(), key=lambda item: item[1].start))


def _write_blocks(file: BinaryIO, content: Content, done: Callable[[int], None]) -> None:
    for block in content.blocks():  # of a function's own: a last block would keep its whole tensor
        done(file.write(block))


def shards(contents: Iterable[Content], limit: int) -> list[list[Content]]:
    """Share tensors out over files of at most `limit` bytes; a larger tensor gets a file of its own."""
    found: list[list[Content]] = [[]]
    size = 0
    for content in contents:
        if found[-1] and size + content.bytes > limit:
            found.append([])
            size = 0
        found[-1].append(content)
        size += content.bytes
    return [sorted(shard, key=lambda content: -_SIZES[content.dtype]) for shard in found]


def bytes_of(dtype: str, shape: Sequence[int]) -> int:
    """Length of a tensor."""
    size = _SIZES[dtype]
    for side in shape:
        size *= side
    return size


def finite(block: bytes, dtype: str) -> bool:
    """Whether none of a block's numbers is infinite or NaN."""
    exponent = _EXPONENTS[dtype]
    words = np.frombuffer(block, f"<u{_SIZES[dtype]}")
    parts = (words[start : start + _WORDS] for start in range(0, len(words), _WORDS))
    return all((part & part.dtype.type(exponent)).max() < exponent for part in parts)


def tensor_blocks(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor, without a copy."""
    view = _view(tensor)
    for start in range(0, len(view), BLOCK):
        yield view[start : start + BLOCK]


def _view(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of which no key comes twice: readers disagree about which one counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def read_object(path: Path, most: int = 1 << 28) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: It cannot be read, is larger than `most` bytes, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(most + 1)
        values = json.loads(text, object_pairs_hook=_unique) if len(text) <= most else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        found = "a larger file" if values is None and len(text) > most else f"a {type(values).__name__}"
        raise InputError(f"{path}: expected a JSON object of at most {most} bytes, found {found}")
    return values
