"""MessagePack with NumPy arrays, as the clients write it; everything that is read is checked.

openpi-client writes an array as a map with the binary keys `__ndarray__`, `data`, `dtype`, `shape`, a NumPy
scalar with `__npgeneric__`; vla-eval uses text keys, and `__image__` for an encoded image, which stays a map.
No message can make the reader run code, and none takes much more memory than its own length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

ARRAY, SCALAR = "__ndarray__", "__npgeneric__"
_KINDS = {"b": (1,), "u": (1, 2, 4, 8), "i": (1, 2, 4, 8), "f": (2, 4, 8)}
_DTYPES = frozenset(
    f"{order}{kind}{size}" for kind, sizes in _KINDS.items() for size in sizes for order in "<>|="
)
_MAX_DIMENSIONS = 8
_MAX_ITEMS = 256  # of one list or map
_MAX_CONTAINERS = 1024  # lists and maps of one message
_SHOWN = 60  # characters of a value in messages


class ClientError(ValueError):
    """What a client sent cannot be used; the message is sent to that client."""


def unpack(message: bytes) -> Any:
    """Read a message; arrays come out as read-only NumPy arrays.

    Args:
        message: One MessagePack value.

    Raises:
        ClientError: It is not MessagePack, an array's size is not that of its shape and dtype, a dtype is no
            boolean, integer or float, or there are too many lists and maps.
    """
    containers = 0

    def count(value: Any) -> Any:
        nonlocal containers
        containers += 1
        if containers > _MAX_CONTAINERS:
            raise ClientError(f"the message has more than {_MAX_CONTAINERS} lists and maps")
        return value

    try:
        return msgpack.unpackb(
            message,
            object_hook=lambda value: _decoded(count(value)),
            list_hook=count,
            ext_hook=_refuse_extension,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
        )
    except ClientError:
        raise
    except (ValueError, msgpack.UnpackException) as error:
        raise ClientError(
            f"no MessagePack of text, numbers and arrays ({type(error).__name__}: {shown(error)})"
        ) from error


def pack(message: Mapping[str, Any], binary_keys: bool) -> bytes:
    """Write a message.

    Args:
        message: Texts, numbers, lists, maps and arrays of booleans, integers and floats.
        binary_keys: Whether the keys of an array's map are binary (openpi-client) or text (vla-eval).
    """

    def encoded(value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.kind not in _KINDS:
            raise TypeError(f"{type(value).__name__} has no place in a message")
        fields = {
            ARRAY: True,
            "data": value.tobytes(),
            "dtype": value.dtype.str,
            "shape": list(value.shape),
        }
        return {key.encode(): part for key, part in fields.items()} if binary_keys else fields

    packed = msgpack.packb(message, default=encoded)
    assert isinstance(packed, bytes)
    return packed


def shown(value: object) -> str:
    """A client's value as one short line of text."""
    text = " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def describe(value: object) -> str:
    """A client's value by its type: `uint8 [64, 64, 3]`, `text`, `map`."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    names = {str: "text", bytes: "bytes", dict: "a map", list: "a list", type(None): "nothing"}
    return names.get(type(value), type(value).__name__)


def _decoded(value: dict[Any, Any]) -> Any:
    """A map, or the array or scalar that it stands for."""
    for marker, decode in ((ARRAY, array_of), (SCALAR, _scalar)):
        if marker in value:
            return decode(value)
        if marker.encode() in value:
            return decode({key.decode(): part for key, part in value.items() if isinstance(key, bytes)})
    return value


def array_of(fields: Mapping[str, Any]) -> NDArray[Any]:
    """The array that a map with `data`, `dtype` and `shape` stands for.

    Raises:
        ClientError: As for `unpack`.
    """
    dtype, shape, content = _dtype(fields), fields.get("shape"), fields.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ClientError(f"an array's shape is {shown(shape)}, expected a list of sizes")
    if len(shape) > _MAX_DIMENSIONS:
        raise ClientError(f"an array has {len(shape)} dimensions, expected at most {_MAX_DIMENSIONS}")
    if not isinstance(content, bytes):
        raise ClientError(f"an array's data is {describe(content)}, expected bytes")
    expected = math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ClientError(f"an array of {dtype} {shape} has {len(content)} bytes, expected {expected}")
    return np.frombuffer(content, dtype).reshape(shape)


def _scalar(fields: Mapping[str, Any]) -> np.generic:
    dtype, value = _dtype(fields), fields.get("data")
    if not isinstance(value, bool | int | float):
        raise ClientError(f"a NumPy scalar's value is {describe(value)}, expected a number")
    try:
        return dtype.type(value)
    except (OverflowError, ValueError) as error:
        raise ClientError(f"{shown(value)} is no {dtype}") from error


def _dtype(fields: Mapping[str, Any]) -> np.dtype[Any]:
    name = fields.get("dtype")
    if not isinstance(name, str) or name not in _DTYPES:
        raise ClientError(f"an array's dtype is {shown(name)}, expected booleans, integers or floats")
    return np.dtype(name)


def _refuse_extension(code: int, content: bytes) -> Any:
    raise ClientError(f"an extension type ({code}), expected text, numbers and arrays")
