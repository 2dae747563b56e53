"""TFRecord files and `tf.train.Example` messages without TensorFlow.

A record is: length (uint64, little endian), masked CRC-32C of the length, content, masked CRC-32C of the
content (TensorFlow, `core/lib/io/record_writer.h`). A file may be compressed as a whole, with gzip or zlib
(`record_reader.h`); its offsets are those of the content. An Example maps names to lists of bytes, floats or
integers (TensorFlow, `core/example/example.proto`, `feature.proto`).
"""

from __future__ import annotations

import os
import struct
import weakref
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import google_crc32c  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from data.errors import InputError
from data.sources.rlds.inflated_file import InflatedFile

_checksum: Callable[[bytes], int] = cast(Any, google_crc32c).value
_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")
_LONGEST = (1 << 31) - 1  # bytes of a protobuf message; a compressed file does not bound its records itself


def record_offsets(path: Path) -> Iterator[tuple[int, bytes | InputError]]:
    """Yield offset and content of every record of a file, checksums verified.

    In place of a content that does not have its checksum comes the error; the next record is found by the
    length, which has one of its own.

    Raises:
        InputError: The file cannot be read, is truncated or damaged, or the checksum of a length does not
            match: what follows cannot be found.
    """
    with _naming_errors(path), path.open("rb") as file:
        content, size = _content(file)
        offset = 0
        while True:
            try:
                record = _read_record(content, offset, size, path)
            except _DamagedContentError as error:
                record = error
            if record is None:
                return
            yield offset, record
            offset = content.tell()


class RecordReader:
    """Reads records by their offsets.

    The file of the newest one stays open: records in order of a compressed file are decompressed once.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._files = ExitStack()
        weakref.finalize(self, self._files.close)

    def read(self, path: Path, offset: int) -> bytes:
        """Read the content of a record, checksums verified (InputError as `record_offsets`)."""
        with _naming_errors(path):
            if path != self._path:
                self._files.close()
                self._content, self._size = _content(self._files.enter_context(path.open("rb")))
            self._path = None  # until it is known to be whole: after an error it is opened again
            record = _read_record(self._content, offset, self._size, path)
            self._path = path
        if record is None:
            raise _cut_short(path, offset)
        return record


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


@contextmanager
def _naming_errors(path: Path) -> Generator[None]:
    """Name the file in errors of reading and decompressing it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy the data set again") from error
    except zlib.error as error:
        raise InputError(
            f"{path}: its compressed content is damaged ({error}); copy the file again"
        ) from error


def _content(file: BinaryIO) -> tuple[BinaryIO | InflatedFile, int | None]:
    """The content of an open file, and its length; None: it is compressed, and the length is not known."""
    head = file.read(_HEADER.size)
    file.seek(0)
    if _is_compressed(head) and not _is_length(head):
        return InflatedFile(file), None
    return file, os.fstat(file.fileno()).st_size


def _is_compressed(head: bytes) -> bool:
    """Whether a file begins as those that TensorFlow compresses (RFC 1950, RFC 1952)."""
    is_zlib = head[:1] == b"\x78" and int.from_bytes(head[:2]) % 31 == 0
    return is_zlib or head[:2] == b"\x1f\x8b"


def _is_length(head: bytes) -> bool:
    """Whether these are the length of a record and its checksum."""
    return len(head) == _HEADER.size and masked_checksum(head[:8]) == _HEADER.unpack(head)[1]


def _read_record(file: BinaryIO | InflatedFile, offset: int, size: int | None, path: Path) -> bytes | None:
    """The record at an offset of a content of `size` bytes; None at its end."""
    file.seek(offset)
    head = file.read(_HEADER.size)
    if not head and file.tell() == offset:
        return None
    if len(head) < _HEADER.size:
        raise _cut_short(path, offset)
    if not _is_length(head):
        raise InputError(_damaged(path, offset, "length"))
    length = int(_HEADER.unpack(head)[0])
    # Before the read: a wrong length must not allocate.
    if size is None and length > _LONGEST:
        raise InputError(
            f"{path}: the record at offset {offset} has {length} bytes, an Example at most {_LONGEST}; copy "
            "the file again"
        )
    if size is not None and length > size - offset - _HEADER.size - _CHECKSUM.size:
        raise _cut_short(path, offset)
    content, checksum = file.read(length), file.read(_CHECKSUM.size)
    if len(checksum) < _CHECKSUM.size:
        raise _cut_short(path, offset)
    if masked_checksum(content) != _CHECKSUM.unpack(checksum)[0]:
        raise _DamagedContentError(_damaged(path, offset, "content"))
    return content


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
