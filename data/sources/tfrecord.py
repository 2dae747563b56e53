"""TFRecord files and `tf.train.Example` messages without TensorFlow.

A record is: length (uint64, little endian), masked CRC-32C of the length, content, masked CRC-32C of the
content (TensorFlow, `core/lib/io/record_writer.h`). An Example maps names to lists of bytes, floats or
integers (TensorFlow, `core/example/example.proto`, `feature.proto`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import google_crc32c  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from data.errors import InputError

_checksum: Callable[[bytes], int] = cast(Any, google_crc32c).value
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_DECOMPRESS = {"gzip": "gzip -dc FILE", "zlib": "zlib-flate -uncompress < FILE"}


def record_offsets(path: Path) -> Iterator[tuple[int, bytes | InputError]]:
    """Yield offset and content of every record of a file, checksums verified.

    In place of a content that does not have its checksum comes the error; the next record is found by the
    length, which has one of its own.

    Raises:
        InputError: The file cannot be read, is truncated or compressed, or the checksum of a length does not
            match: what follows cannot be found.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            offset = 0
            while offset < size:
                try:
                    yield offset, _read_record(file, offset, size, path)
                except _DamagedContentError as error:
                    yield offset, error
                offset = file.tell()
    except OSError as error:
        raise _unreadable(path, error) from error


def read_record(path: Path, offset: int) -> bytes:
    """Read the content of the record at an offset, checksums verified (InputError as `record_offsets`)."""
    try:
        with path.open("rb") as file:
            return _read_record(file, offset, os.fstat(file.fileno()).st_size, path)
    except OSError as error:
        raise _unreadable(path, error) from error


class _DamagedContentError(InputError):
    """The content of one record does not have its checksum; the others can be read."""


class Example:
    """One parsed `tf.train.Example`.

    Raises:
        InputError: The bytes are no Example.
    """

    def __init__(self, content: bytes, where: str) -> None:
        self._where = where
        message: Any = _example_class()()
        try:
            message.ParseFromString(content)
        except DecodeError as error:
            raise InputError(f"{where}: no tf.train.Example ({error}); copy the data set again") from error
        self._features: Any = message.features.feature

    def numbers(self, name: str) -> NDArray[Any]:
        """A list of floats (float32) or integers (int64), flat."""
        feature = self._feature(name)
        kind: str | None = feature.WhichOneof("kind")
        if kind == "float_list":
            return np.array(feature.float_list.value, np.float32)
        if kind == "int64_list":
            return np.array(feature.int64_list.value, np.int64)
        raise self._wrong(name, kind, "numbers")

    def texts(self, name: str) -> list[bytes]:
        """A list of byte strings."""
        feature = self._feature(name)
        kind: str | None = feature.WhichOneof("kind")
        if kind != "bytes_list":
            raise self._wrong(name, kind, "bytes")
        return list(feature.bytes_list.value)

    def _feature(self, name: str) -> Any:
        if name not in self._features:
            raise InputError(f"{self._where}: no feature {name}; features.json does not fit the records")
        return self._features[name]

    def _wrong(self, name: str, kind: str | None, expected: str) -> InputError:
        return InputError(f"{self._where}: {name} is {kind or 'empty'}, expected a list of {expected}")


def masked_checksum(content: bytes) -> int:
    """CRC-32C, rotated and shifted as TFRecord files store it."""
    value: int = _checksum(content)
    return (((value >> 15) | (value << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _read_record(file: BinaryIO, offset: int, size: int, path: Path) -> bytes:
    file.seek(offset)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise _cut_short(path, offset)
    length, length_checksum = _HEADER.unpack(head)
    if masked_checksum(head[:8]) != length_checksum:
        if offset == 0 and (compression := _compression(head)):
            raise InputError(
                f"{path}: a TFRecord file compressed with {compression}, expected a plain one; decompress "
                f"each file, under the same name ({_DECOMPRESS[compression]})"
            )
        raise InputError(_damaged(path, offset, "length"))
    if (
        length > size - offset - _HEADER.size - _CHECKSUM.size
    ):  # before the read: a wrong length must not allocate
        raise _cut_short(path, offset)
    content = file.read(length)
    (checksum,) = _CHECKSUM.unpack(file.read(_CHECKSUM.size))
    if masked_checksum(content) != checksum:
        raise _DamagedContentError(_damaged(path, offset, "content"))
    return content


def _compression(head: bytes) -> str | None:
    """The compression of a file that begins so; None: none that TensorFlow writes (RFC 1950, RFC 1952)."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    return "zlib" if head[0] == 0x78 and int.from_bytes(head[:2]) % 31 == 0 else None


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: cannot be read ({error.strerror}); copy the data set again")


def _cut_short(path: Path, offset: int) -> InputError:
    return InputError(f"{path}: cut short in the record at offset {offset}; copy the file again")


def _damaged(path: Path, offset: int, what: str) -> str:
    return (
        f"{path}: the {what} of the record at offset {offset} does not have its checksum; copy the file again"
    )


@cache
def _example_class() -> type[Any]:
    """The message class, built in a descriptor pool of its own (other libraries may define it, too)."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    lists = (
        ("BytesList", kinds.TYPE_BYTES),
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    )
    for name, kind in lists:
        message = file.message_type.add(name=name)
        message.field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (field, kind) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), start=1
    ):
        feature.field.add(
            name=field,
            number=number,
            type=kinds.TYPE_MESSAGE,
            type_name=f".tensorflow.{kind}",
            label=kinds.LABEL_OPTIONAL,
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(
        name="value",
        number=2,
        type=kinds.TYPE_MESSAGE,
        type_name=".tensorflow.Feature",
        label=kinds.LABEL_OPTIONAL,
    )
    features.field.add(
        name="feature",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".tensorflow.Features.FeatureEntry",
        label=kinds.LABEL_REPEATED,
    )
    example = file.message_type.add(name="Example")
    example.field.add(
        name="features",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".tensorflow.Features",
        label=kinds.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
