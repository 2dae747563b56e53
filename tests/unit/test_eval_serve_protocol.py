"""MessagePack of clients: what openpi-client writes is read, what a hostile one writes is refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openpi_client import msgpack_numpy

from eval.serve.protocol import ClientError, pack, unpack
from tests.support.served_policy import packed


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
        np.array([[1.5, -0.0, np.nan]], np.float64),
        np.array([1, 2], ">f4"),
        np.zeros((0, 3), np.int32),
        np.array(True),
    ],
)
def test_arrays_pass_to_and_from_openpi_client_unchanged(array: np.ndarray[Any, Any]) -> None:
    read = unpack(packed({"array": array, "text": "é", "list": [1, None, 2.5]}))
    assert (read["text"], read["list"]) == ("é", [1, None, 2.5])
    back = msgpack_numpy.unpackb(pack({"array": array}, binary_keys=True))["array"]
    for same in (read["array"], back, unpack(pack({"array": array}, binary_keys=False))["array"]):
        assert (same.dtype, same.shape, same.tobytes()) == (array.dtype, array.shape, array.tobytes())


def test_numpy_scalars_of_openpi_client_are_read() -> None:
    read = unpack(packed({"reset": np.bool_(True), "count": np.int32(7)}))
    assert read == {"reset": True, "count": 7}
    assert isinstance(read["reset"], np.bool_)


def raw(message: Any) -> bytes:
    """MessagePack without any encoding of arrays."""
    written = msgpack.packb(message)
    assert written is not None
    return written


def array_map(**changed: Any) -> bytes:
    fields = {"__ndarray__": True, "data": b"\0" * 8, "dtype": "<f4", "shape": [2], **changed}
    return raw({key.encode(): value for key, value in fields.items()})


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (array_map(dtype="|O"), "dtype is |O, expected booleans, integers or floats"),
        (array_map(dtype="<U2"), "dtype is <U2"),
        (array_map(dtype="f4,f4"), "dtype is f4,f4"),
        (array_map(dtype=[["a", "<f4"]]), "dtype is [['a', '<f4']]"),
        (array_map(shape=[3]), "array of float32 [3] has 8 bytes, expected 12"),
        (array_map(shape=[2**62, 2**62]), "has 8 bytes, expected"),
        (array_map(shape=[-2]), "shape is [-2]"),
        (array_map(shape=[True, 2]), "shape is [True, 2]"),
        (array_map(shape=[1] * 9 + [2]), "10 dimensions, expected at most 8"),
        (array_map(shape=None), "shape is None"),
        (array_map(data=[0] * 8), "data is a list, expected bytes"),
        (raw({b"__npgeneric__": True, b"data": 300, b"dtype": "|u1"}), "300 is no uint8"),
        (raw({b"__npgeneric__": True, b"data": "x", b"dtype": "|u1"}), "scalar's value is text"),
        (raw(msgpack.ExtType(5, b"code")), "an extension type (5)"),
        (raw([0] * 257), "no MessagePack of text, numbers and arrays (ValueError: 257 exceeds"),
        (raw([[[]] * 200] * 6), "more than 1024 lists and maps"),
        (b"\x91" * 2000 + b"\xc0", "StackError"),
        (b"\x82\xa1", "ValueError"),
        (b"", "ValueError"),
        (b"\xc0\xc0", "ExtraData"),
        (b"\xc1", "FormatError"),
        (b"\xa1\xff", "UnicodeDecodeError"),
        (raw({1: 2}), "int is not allowed for map key"),
        (b"\x80\x04\x95pickle", "ExtraData"),
    ],
)
def test_what_is_no_honest_message_is_refused_in_words(message: bytes, words: str) -> None:
    with pytest.raises(ClientError) as raised:
        unpack(message)
    assert words in str(raised.value)
    assert len(str(raised.value)) < 300


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(message: bytes) -> None:
    try:
        unpack(message)
    except ClientError:
        return


@given(st.binary(max_size=60), st.integers(0, 1000))
def test_a_message_with_changed_bytes_is_read_or_refused(noise: bytes, position: int) -> None:
    message = bytearray(packed({"a": np.arange(6), "b": np.float32(1), "c": "text"}))
    begin = position % len(message)
    message[begin : begin + len(noise)] = noise
    try:
        unpack(bytes(message))
    except ClientError:
        return


def test_a_message_of_empty_lists_takes_little_memory() -> None:
    nested = raw([[[[]] * 250] * 250] * 40)  # 2.5 million lists in 2.5 MB
    assert len(nested) > 2_000_000
    tracemalloc.start()
    with pytest.raises(ClientError, match="lists and maps"):
        unpack(nested)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3_000_000


def test_only_plain_arrays_are_written() -> None:
    for value in (np.array([None]), np.array(["text"]), object()):
        with pytest.raises(TypeError, match="has no place in a message"):
            pack({"value": value}, binary_keys=True)
