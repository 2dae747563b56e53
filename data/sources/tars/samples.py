"""Samples of WebDataset's tar files: members whose names are equal up to the first dot.

    episode_0001_000012.jpg          the frame of a step       field `jpg`
    episode_0001_000012.wrist.jpg    another one               field `wrist.jpg`
    episode_0001_000012.json         a JSON object             field `json`, and `json:action` for its parts
    episode_0001_000012.state.npy    an array                  field `state.npy`

How names are divided and grouped is the library's own code; it decodes nothing here, because its decoders
unpickle (`.pyd`, `.pickle`, `.pth`, object arrays). Only JSON, plain numeric arrays, UTF-8 texts, PNG, JPEG
and MP4 are ever decoded, and no size in a file is believed before it is compared with the bytes there are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.json_record import parse_json
from data.sources.tars.tar_members import DamagedTarError, Member, read_members

IMAGES, VIDEOS = ("jpg", "jpeg", "png"), ("mp4",)
_MAX_NUMBERS = 1 << 28  # bytes of a JSON object, a text or an array
_DEEPEST = 8  # levels of JSON objects that have names


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a tar file.

    Attributes:
        key: Its name.
        members: The members by the rest of their names, in lower case.
    """

    key: str
    members: Mapping[str, Member]

    @property
    def begin(self) -> int:
        """Offset of its first header."""
        return min(member.header for member in self.members.values())

    @property
    def end(self) -> int:
        """Offset after its last member."""
        return max(member.end for member in self.members.values())


def key_of(name: str) -> str:
    """The key of the sample that a member of this name belongs to; empty: to none."""
    from webdataset.tariterators import base_plus_ext

    return base_plus_ext(name)[0] or ""


def read_samples(path: Path, begin: int = 0, end: int | None = None) -> Iterator[Sample]:
    """Yield the samples of a tar file; members without a dot in their name belong to none.

    Args:
        path: The tar file.
        begin: Offset of the first sample.
        end: Offset after the last one; None: all to the end.

    Raises:
        DamagedTarError: As of `read_members`, or a sample has two members of one name.
    """
    from webdataset.tariterators import group_by_keys

    members = ({"fname": each.name, "data": each, "__url__": ""} for each in read_members(path, begin, end))
    try:
        for group in group_by_keys(members):
            found = {name: value for name, value in group.items() if not name.startswith("__")}
            yield Sample(group["__key__"], found)
    except ValueError as error:
        raise DamagedTarError(
            f"{path}: two members of one name ({str(error.args[0]).partition(':')[0]}); make the file again"
        ) from error


class SampleReader:
    """Reads the fields of a sample.

    Args:
        file: The open tar file.
        sample: A sample of it.
        where: Leads the messages.
    """

    def __init__(self, file: BinaryIO, sample: Sample, where: str) -> None:
        self._file, self._sample, self.where = file, sample, where
        self._objects: dict[str, object] = {}

    def check(self, field: str) -> Member:
        """The member of a name (InputError: there is none)."""
        member = self._sample.members.get(field)
        if member is None:
            raise InputError(
                f"{self.where}: no member {field}, it has {', '.join(sorted(self._sample.members))}; export "
                "the demonstration again"
            )
        return member

    def content(self, field: str) -> bytes:
        """All bytes of a member (InputError: there is none)."""
        member = self.check(field)
        self._file.seek(member.begin)
        return self._file.read(member.size)

    def numbers(self, field: str) -> NDArray[np.float64]:
        """A field of numbers, as float64 of its own shape.

        Raises:
            InputError: It is missing, or no array of numbers.
        """
        if ":" in field:
            value: Any = self._part(field)
            try:
                array = np.asarray(value, np.float64)
            except (TypeError, ValueError, OverflowError) as error:
                raise InputError(
                    f"{self.where}: {field} is no array of numbers ({error}); export the demonstration again"
                ) from error
            if isinstance(value, str):  # numpy reads a number from it
                raise InputError(f"{self.where}: {field} is a text, expected numbers; name another field")
            return array
        return _array(self._bounded(field), f"{self.where}: {field}").astype(np.float64)

    def texts(self, field: str) -> list[str]:
        """A field that is a text, or a list of texts.

        Raises:
            InputError: It is missing, or something else.
        """
        if ":" not in field:
            return [self._bounded(field).decode("utf-8", "replace")]
        value = self._part(field)
        texts = cast("list[object]", value if isinstance(value, list) else [value])
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{self.where}: {field} is {texts[:3]!r:.60}, expected a text; name another")
        return cast("list[str]", texts)

    def identity(self, field: str) -> str:
        """A field that is a text or a whole number, as text."""
        value = self._part(field) if ":" in field else self._bounded(field).decode("utf-8", "replace")
        if not isinstance(value, str | int):
            raise InputError(
                f"{self.where}: {field} is {str(value)[:60]!r}, expected the text or number of an episode; "
                "name another field with episode_field=NAME"
            )
        return str(value).strip()

    def fields(self) -> tuple[list[str], list[str]]:
        """Names of the fields that hold numbers, and of those that hold texts."""
        numbers = [name for name in self._sample.members if _kind(name) == "npy"]
        texts = [name for name in self._sample.members if _kind(name) in ("txt", "text")]
        for name in self._sample.members:
            if _kind(name) == "json":
                for part, value in _parts(self._object(name), _DEEPEST):
                    (texts if _is_text(value) else numbers).append(f"{name}:{part}")
        return numbers, texts

    def _bounded(self, field: str) -> bytes:
        member = self.check(field)
        if member.size > _MAX_NUMBERS:
            raise InputError(
                f"{self.where}: {field} has {member.size} bytes, expected at most {_MAX_NUMBERS}"
            )
        return self.content(field)

    def _object(self, name: str) -> object:
        if name not in self._objects:
            self._objects[name] = parse_json(self._bounded(name), f"{self.where}: {name}")
        return self._objects[name]

    def _part(self, field: str) -> object:
        """What a path within a JSON object names."""
        name, _, path = field.partition(":")
        value = self._object(name)
        for part in path.split("/"):
            members = cast("dict[str, object]", value) if isinstance(value, dict) else {}
            if part not in members:
                raise InputError(f"{self.where}: {name} has no {path}; export the demonstration again")
            value = members[part]
        return value


def kind_of_frames(field: str) -> str:
    """`image` or `video` for a member that holds frames, else empty."""
    kind = _kind(field)
    return "image" if kind in IMAGES else "video" if kind in VIDEOS else ""


def _kind(field: str) -> str:
    return field.rpartition(".")[2]


def _is_text(value: object) -> bool:
    first = next(iter(cast("list[object]", value)), None) if isinstance(value, list) else value
    return isinstance(first, str)


def _parts(value: object, depth: int) -> Iterator[tuple[str, object]]:
    """Path and value of what a JSON object holds, objects within objects by their parts."""
    if not isinstance(value, dict) or not depth:
        return
    for name, member in cast("dict[str, object]", value).items():
        if isinstance(member, dict):
            yield from ((f"{name}/{path}", part) for path, part in _parts(cast(object, member), depth - 1))
        else:
            yield name, member


def _array(content: bytes, where: str) -> NDArray[Any]:
    """Parse an npy file of numbers; nothing is unpickled, and no size is allocated that is not there."""
    file, formats = io.BytesIO(content), np.lib.format
    try:
        version = formats.read_magic(file)
        read = formats.read_array_header_1_0 if version == (1, 0) else formats.read_array_header_2_0
        shape, fortran, dtype = read(file)
        size, left = math.prod(shape) * dtype.itemsize, len(content) - file.tell()
        if dtype.kind not in "fiub" or size != left:
            raise ValueError(f"{shape} of {dtype} in {left} bytes, expected numbers in {size}")
        array = np.frombuffer(content, dtype, offset=file.tell())
        return array.reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError, SyntaxError, EOFError, OverflowError, RecursionError) as error:
        raise InputError(f"{where}: not a readable npy file ({error}); copy the data set again") from error
