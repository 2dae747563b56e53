"""Headers of safetensors files, written and strictly read: a file may come from anywhere.

The format (https://github.com/huggingface/safetensors): 8 bytes with the header's length (little endian), the
header, then the tensors' bytes. The header is a JSON object, padded with spaces::

    {"name": {"dtype": "I32", "shape": [3], "data_offsets": [0, 12]}, "__metadata__": {"key": "value"}}

A header is accepted only if every byte of the file belongs to exactly one tensor, so that nothing read by it
reaches out of the file. Callers add the file's name and a remedy to a `HeaderError`.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

LENGTH_BYTES = 8  # before the header: its length
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library as well
_METADATA = "__metadata__"
_MAX_SIDE = 1 << 48
_MAX_BYTES = 1 << 62
# The format's codes, and for each the name that numpy and torch share and the bytes of one value.
_DTYPES = {
    "BOOL": ("bool", 1),
    "U8": ("uint8", 1),
    "I8": ("int8", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "U16": ("uint16", 2),
    "I16": ("int16", 2),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "U32": ("uint32", 4),
    "I32": ("int32", 4),
    "F32": ("float32", 4),
    "U64": ("uint64", 8),
    "I64": ("int64", 8),
    "F64": ("float64", 8),
}
_CODES = {name: code for code, (name, _) in _DTYPES.items()}


class HeaderError(ValueError):
    """The bytes are not the header of a complete safetensors file; the message says why."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a file.

    Attributes:
        dtype: Name as numpy and torch have it, for example `float32`.
        shape: Of the tensor.
        start: Its first byte in the file.
        bytes: Their number.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """The content of a header.

    Attributes:
        tensors: By name, in the order of the file; they cover its data without gaps or overlaps.
        metadata: The file's own words.
    """

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(content: bytes | mmap.mmap, max_bytes: int = MAX_HEADER_BYTES) -> Header:
    """Read the header of a whole file in memory.

    Args:
        content: The file.
        max_bytes: Longest header to accept.

    Raises:
        HeaderError: It is not a complete safetensors file.
    """
    length = header_length(content[:LENGTH_BYTES], len(content), max_bytes)
    return parse_header(content[LENGTH_BYTES : LENGTH_BYTES + length], len(content))


def header_length(first: bytes, file_bytes: int, max_bytes: int = MAX_HEADER_BYTES) -> int:
    """Length of the header.

    Args:
        first: The first 8 bytes of the file.
        file_bytes: Length of the whole file.
        max_bytes: Longest header to accept.

    Raises:
        HeaderError: The header is too long for the file or for `max_bytes`, or empty.
    """
    length = int.from_bytes(first, "little")
    if len(first) != LENGTH_BYTES or not 2 <= length <= min(max_bytes, file_bytes - LENGTH_BYTES):
        raise HeaderError(f"header of {length} bytes in {file_bytes}")
    return length


def parse_header(text: bytes, file_bytes: int) -> Header:
    """Parse a header.

    Args:
        text: The header without its length.
        file_bytes: Length of the whole file.

    Raises:
        HeaderError: It is not a header, or does not describe every byte of the file exactly once.
    """
    if text[:1] != b"{":
        raise HeaderError("header is no JSON object")
    try:
        header = json.loads(text.decode(), object_pairs_hook=unique_keys, parse_constant=_no_constant)
        "".join(header).encode()  # surrogates: JSON can spell names that are not Unicode
    except (ValueError, RecursionError) as error:
        raise HeaderError(str(error)) from error
    metadata = _metadata(header.pop(_METADATA, {}))
    data = LENGTH_BYTES + len(text)
    entries = {name: _entry(name, fields, data, file_bytes) for name, fields in header.items()}
    tensors = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].bytes)))
    _check_coverage(tensors, data, file_bytes)
    return Header(tensors, metadata)


def encode_header(
    tensors: Iterable[tuple[str, str, Sequence[int]]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Encode the bytes of a file before its data, a multiple of 8.

    Args:
        tensors: Name, dtype and shape of each, in the order of the file.
        metadata: The file's own words.
    """
    header: dict[str, Any] = {} if metadata is None else {_METADATA: dict(metadata)}
    start = 0
    for name, dtype, shape in tensors:
        end = start + tensor_bytes(dtype, shape)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Length of a tensor in bytes; for an absurd shape some number beyond every file's length."""
    size = dtype_bytes(dtype)
    for side in shape:
        size *= side
        if size > _MAX_BYTES:  # a shape may have very many sides
            break
    return size


def dtype_bytes(dtype: str) -> int:
    """Bytes of one value of a dtype, by its name."""
    return _DTYPES[_CODES[dtype]][1]


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object (`object_pairs_hook`) of distinct keys: readers disagree about which of two counts.

    Raises:
        ValueError: A key occurs twice.
    """
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} occurs twice")
    return values


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _metadata(values: object) -> dict[str, str]:
    if not isinstance(values, dict) or not all(
        isinstance(value, str) for value in cast("dict[str, object]", values).values()
    ):
        raise HeaderError(f"{_METADATA} is no object of strings")
    return cast("dict[str, str]", values)


def _entry(name: str, values: Any, data: int, file_bytes: int) -> TensorEntry:
    """Check one tensor's entry; `data` is where the tensors begin in the file."""
    fields: dict[str, Any] = cast("dict[str, Any]", values) if isinstance(values, dict) else {}
    code, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not (isinstance(code, str) and code in _DTYPES and _are_sizes(shape) and _are_sizes(offsets, 2)):
        raise HeaderError(f"{name[:80]}: invalid entry {values!r:.100}")
    dtype, (start, end) = _DTYPES[code][0], cast("list[int]", offsets)
    size = tensor_bytes(dtype, cast("list[int]", shape))
    available = file_bytes - data
    if end - start != size or end > available:
        raise HeaderError(
            f"{name[:80]}: bytes {start} to {end} of {available} for {dtype} of shape {str(shape)[:80]}"
        )
    return TensorEntry(dtype, tuple(cast("list[int]", shape)), data + start, size)


def _are_sizes(value: object, count: int | None = None) -> bool:
    """Whether it is a list, of `count` elements if given, of whole numbers that can be sizes."""
    if not isinstance(value, list) or count not in (None, len(cast("list[object]", value))):
        return False
    return all(type(side) is int and 0 <= side < _MAX_SIDE for side in cast("list[object]", value))


def _check_coverage(tensors: Mapping[str, TensorEntry], data: int, file_bytes: int) -> None:
    """Check that the tensors, in the order of the file, fill it from `data` to its end."""
    end = data
    for name, entry in tensors.items():
        if entry.start != end:
            raise HeaderError(f"{name[:80]}: a gap or an overlap at byte {min(end, entry.start)}")
        end += entry.bytes
    if end != file_bytes:
        raise HeaderError(f"describes {end} bytes, the file has {file_bytes}")
