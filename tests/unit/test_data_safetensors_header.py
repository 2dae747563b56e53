"""Headers of safetensors files: nothing is accepted that the safetensors library refuses."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from data.safetensors_header import (
    HeaderError,
    encode_header,
    header_length,
    parse_header,
    read_header,
    unique_keys,
)

ARRAYS = {
    "a": np.arange(6, dtype=np.int64).reshape(2, 3),
    "b": np.arange(3, dtype=np.float32),
    "empty": np.zeros((0, 4), np.uint8),
    "scalar": np.array(1.5, np.float16),
}
FILE = save(ARRAYS, {"key": "value"})


def with_header(text: bytes, data: bytes = bytes(8)) -> bytes:
    return len(text).to_bytes(8, "little") + text + data


def test_header_describes_what_the_library_reads() -> None:
    header = read_header(FILE)
    assert header.metadata == {"key": "value"}
    assert header.tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        entry = header.tensors[name]
        assert (entry.dtype, entry.shape) == (str(array.dtype), array.shape)
        assert FILE[entry.start : entry.start + entry.bytes] == array.tobytes()
    assert [entry.start for entry in header.tensors.values()] == sorted(
        entry.start for entry in header.tensors.values()
    )


def test_encoded_header_is_read_back_by_the_library() -> None:
    tensors = [("a", "bfloat16", (2, 3)), ("b", "float32", ()), ("c", "int64", (0, 4))]
    content = encode_header(tensors, {"format": "pt"}) + bytes(16)
    assert len(content) % 8 == 0
    library = {name: (fields["dtype"], tuple(fields["shape"])) for name, fields in deserialize(content)}
    assert library == {"a": ("BF16", (2, 3)), "b": ("F32", ()), "c": ("I64", (0, 4))}
    entries = read_header(content).tensors
    assert [(name, entry.dtype, entry.shape) for name, entry in entries.items()] == tensors


def accepted_by_library(content: bytes) -> bool:
    try:
        deserialize(content)
    except SafetensorError:
        return False
    return True


def accepted(content: bytes) -> bool:
    try:
        read_header(content)
    except HeaderError:
        return False
    return True


@given(seed=st.integers(0, 1 << 32), changes=st.integers(1, 4))
def test_changed_bytes_are_accepted_only_where_the_library_accepts_them(seed: int, changes: int) -> None:
    draws, content = random.Random(seed), bytearray(FILE)
    header = 8 + header_length(FILE[:8], len(FILE))
    for _ in range(changes):
        content[draws.randrange(header)] = draws.choice(b'0123456789{}[]",:-+.eE \\u' + bytes(range(256)))
    assert accepted_by_library(bytes(content)) or not accepted(bytes(content))


ENTRY = {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}
FLOAT = json.dumps({"a": ENTRY}).replace("[2]", "[2.0]").encode()


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": ENTRY | {"dtype": "I128"}}, "a: invalid entry"),
        ({"a": ENTRY | {"dtype": ["I32"]}}, "a: invalid entry"),
        ({"a": ENTRY | {"shape": [3]}}, "a: bytes 0 to 8 of 8 for int32"),
        ({"a": ENTRY | {"shape": [3], "data_offsets": [0, 12]}}, "a: bytes 0 to 12 of 8"),
        ({"a": ENTRY | {"shape": [1], "data_offsets": [0, 4]}}, "describes"),
        ({"a": ENTRY | {"shape": [1], "data_offsets": [4, 8]}}, "a: a gap or an overlap"),
        ({"a": ENTRY, "b": ENTRY}, "b: a gap or an overlap"),
        ({"a": ENTRY | {"shape": [-2]}}, "a: invalid entry"),
        ({"a": ENTRY | {"shape": [True, 2]}}, "a: invalid entry"),
        ({"a": ENTRY | {"shape": [1 << 40, 1 << 40]}}, "a: bytes 0 to 8 of 8 for int32"),
        ({"a": ENTRY | {"shape": [1 << 40] * 100_000 + [0]}}, "a: bytes 0 to 8 of 8 for int32"),
        ({"a": ENTRY | {"shape": 2}}, "a: invalid entry"),
        ({"a": ENTRY | {"data_offsets": [8, 0]}}, "a: bytes 8 to 0 of 8"),
        ({"a": ENTRY | {"data_offsets": [0, 8, 8]}}, "a: invalid entry"),
        ({"a": {"dtype": "I32", "shape": [2]}}, "a: invalid entry"),
        ({"a": []}, "a: invalid entry"),
        ({"a": ENTRY, "__metadata__": {"step": 3}}, "__metadata__ is no object of strings"),
        ({"a": ENTRY, "__metadata__": []}, "__metadata__ is no object of strings"),
        (FLOAT, "a: invalid entry"),
        (b" " + json.dumps({"a": ENTRY}).encode(), "header is no JSON object"),
        (b"[]", "header is no JSON object"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"\\ud800": 1}', "surrogates"),
        (b'{"a": 1, "b": 1, "a": 1}', "the key 'a' occurs twice"),
        (b'{"a": ' + b"[" * 100_000, "recursion"),
        (json.dumps({"a": ENTRY}).encode("utf-16"), "header is no JSON object"),
        (b'{"a\xff": 1}', "utf-8"),
    ],
)
def test_hostile_header_is_refused_with_a_reason(header: Any, reason: str) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    with pytest.raises(HeaderError, match=reason):
        read_header(with_header(text))


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", bytes(8), b"\xff" * 40, with_header(b"{}")[:9], (1 << 40).to_bytes(8, "little") + b"{}"],
)
def test_length_of_the_header_is_bounded_by_the_file(content: bytes) -> None:
    with pytest.raises(HeaderError, match=r"header of \d+ bytes in \d+"):
        read_header(content)


def test_length_of_the_header_is_bounded_by_the_reader() -> None:
    length = header_length(FILE[:8], len(FILE))
    assert read_header(FILE, max_bytes=length) == parse_header(FILE[8 : 8 + length], len(FILE))
    with pytest.raises(HeaderError, match="header of"):
        read_header(FILE, max_bytes=length - 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(FILE[:-1], r"bytes \d+ to \d+ of \d+ for"), (FILE + b"\0", r"describes \d+ bytes, the file has \d+")],
    ids=["short", "long"],
)
def test_file_that_is_cut_short_or_too_long_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(HeaderError, match=reason):
        read_header(content)


def test_first_repeated_key_is_named() -> None:
    with pytest.raises(ValueError, match="the key 'b' occurs twice"):
        unique_keys([("a", 1), ("b", 2), ("c", 3), ("b", 4), ("a", 5)])
