"""The chunk table: which rank stored which box of which parameter, as arrays.

One row is one chunk. All states of a parameter (master weights, moments) are cut in the same way. With a
thousand ranks there are some hundred thousand rows: rank 0 concatenates the ranks' arrays, and a reader
selects rows by comparing whole columns, so that no Python loop runs over the chunks of all ranks, and numpy
works without the interpreter's lock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.safetensors_header import TensorEntry, encode_header, read_header
from data.storage.bulk_store import Block
from pretrain.checkpoint.boxes import Box

_COLUMNS = ("parameter", "writer", "offset", "shape")

MAX_DIMENSIONS = 8
"""Of a parameter: a table without chunks may claim any number, and each costs memory."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One stored box of a parameter and the rank that wrote it."""

    writer: int
    box: Box


Index = NDArray[np.int32 | np.int64]


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """All chunks of a checkpoint, ordered by parameter.

    Attributes:
        parameter: [n], position of the parameter among all names in ascending order. This and the other
            arrays are int32, or int64 where a number needs it (and in tables of earlier versions).
        writer: [n], rank that wrote the chunk.
        offset: [n, D], first element of the box; D is the largest number of dimensions.
        shape: [n, D], its size; 1 in dimensions that the parameter does not have.
    """

    parameter: Index
    writer: Index
    offset: Index
    shape: Index

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, Box]], dimensions: int) -> ChunkTable:
        """Make a table of rows (parameter, writer, box)."""
        numbers = np.array(
            [
                (parameter, writer, *_padded(box.offset, dimensions, 0), *_padded(box.shape, dimensions, 1))
                for parameter, writer, box in rows
            ],
            np.int64,
        ).reshape(-1, 2 + 2 * dimensions)
        if not numbers.size or numbers.max() <= np.iinfo(np.int32).max:
            numbers = numbers.astype(np.int32)
        return cls.of_rows(numbers)._sorted()

    @classmethod
    def of_rows(cls, numbers: Index) -> ChunkTable:
        """View an array [n, 2 + 2 D] as a table: parameter, writer, offset and shape of each chunk."""
        boxes = 2 + (numbers.shape[1] - 2) // 2
        return cls(numbers[:, 0], numbers[:, 1], numbers[:, 2:boxes], numbers[:, boxes:])

    def rows(self) -> Index:
        """The table as one array [n, 2 + 2 D]; `of_rows` reads it."""
        return np.column_stack([getattr(self, name) for name in _COLUMNS])

    @classmethod
    def concatenated(cls, tables: Sequence[ChunkTable]) -> ChunkTable:
        """Join the tables of several ranks."""
        columns = (np.concatenate([getattr(table, name) for table in tables]) for name in _COLUMNS)
        return cls(*columns)._sorted()

    def _sorted(self) -> ChunkTable:
        few = not self.parameter.size or self.parameter.max() <= np.iinfo(np.uint16).max
        keys = self.parameter.astype(np.uint16) if few else self.parameter  # numpy sorts 16 bits by radix
        order = np.argsort(keys, kind="stable")
        return ChunkTable(*(getattr(self, name).take(order, axis=0) for name in _COLUMNS))

    def blocks(self) -> list[Block]:
        """The bytes of a safetensors file, block by block; the arrays are not copied."""
        columns = {name: np.ascontiguousarray(getattr(self, name)) for name in _COLUMNS}
        header = encode_header((name, column.dtype.name, column.shape) for name, column in columns.items())
        return [header, *(column.reshape(-1).view(np.uint8).data for column in columns.values())]

    def encode(self) -> bytes:
        """Encode as a safetensors file."""
        return b"".join(self.blocks())

    @classmethod
    def decode(cls, where: str, content: bytes) -> ChunkTable:
        """Decode a safetensors file, whose bytes the table's arrays are; `where` leads the messages.

        Raises:
            InputError: It is not one, or holds other arrays.
        """
        try:
            tensors = read_header(content).tensors
            if any(tensors[name].dtype not in ("int32", "int64") for name in _COLUMNS):
                raise ValueError("wrong dtypes")
            table = cls(*(_array(content, tensors[name]) for name in _COLUMNS))
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{where}: not a table of chunks ({error!r}); take another checkpoint"
            ) from error
        rows = len(table.parameter)
        flat = [table.parameter.shape, table.writer.shape] == [(rows,)] * 2
        if not (
            flat
            and table.offset.ndim == 2
            and table.offset.shape == table.shape.shape == (rows, table.offset.shape[1])
        ):
            raise InputError(f"{where}: not a table of chunks (wrong shapes); take another checkpoint")
        if (dimensions := table.offset.shape[1]) > MAX_DIMENSIONS:
            raise InputError(
                f"{where}: not a table of chunks ({dimensions} dimensions, expected at most "
                f"{MAX_DIMENSIONS}); take another checkpoint"
            )
        return table

    def inconsistency(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Describe why the chunks do not make up parameters of these shapes; None: they do.

        Args:
            shapes: Of all parameters by name.
        """
        names, dimensions = sorted(shapes), self.offset.shape[1]
        if too_many := [name for name in names if len(shapes[name]) > dimensions]:
            return f"{too_many[0]} has more dimensions than the chunks"
        sides = np.array([_padded(shapes[name], dimensions, 1) for name in names], np.int64)
        sides = sides.reshape(len(names), dimensions)
        if len(self.parameter) and not 0 <= self.parameter.min() <= self.parameter.max() < len(names):
            return "a chunk of an unknown parameter"
        if (self.parameter[1:] < self.parameter[:-1]).any():
            return "its chunks are not ordered by parameter"
        inside, sizes = np.ones(len(self.parameter), bool), np.ones(len(self.parameter), np.int64)
        for d in range(dimensions):  # by column: numpy is slow along a short axis
            offset, shape = self.offset[:, d], self.shape[:, d]
            inside &= (offset >= 0) & (shape >= 1) & (offset <= sides[:, d].take(self.parameter) - shape)
            sizes *= shape
        if not inside.all():
            return f"a chunk beyond {names[int(self.parameter[int(inside.argmin())])]}"
        ends = np.searchsorted(self.parameter, np.arange(len(names), dtype=self.parameter.dtype), "right")
        totals = np.diff(np.append(0, sizes.cumsum())[ends], prepend=0)
        if (wrong := np.flatnonzero(totals != sides.prod(axis=1))).size:
            return f"the chunks of {names[int(wrong[0])]} do not make it up"
        return None

    def chunks(self, parameter: int, dimensions: int, boxes: Sequence[Box] | None = None) -> list[Chunk]:
        """List the chunks of one parameter that overlap any of the boxes (None: all)."""
        keys = np.array(
            [parameter, parameter + 1], self.parameter.dtype
        )  # another dtype would copy the column
        rows = slice(*np.searchsorted(self.parameter, keys))
        offset, shape = self.offset[rows, :dimensions], self.shape[rows, :dimensions]
        selected = np.full(len(offset), boxes is None)
        for box in boxes or ():
            start, size = np.array(box.offset, np.int64), np.array(box.shape, np.int64)
            selected |= ((offset < start + size) & (start < offset + shape)).all(axis=1)
        return [
            Chunk(writer, Box(tuple(first), tuple(sides)))
            for writer, first, sides in zip(
                self.writer[rows][selected].tolist(),
                offset[selected].tolist(),
                shape[selected].tolist(),
                strict=True,
            )
        ]


def _padded(numbers: Sequence[int], width: int, fill: int) -> tuple[int, ...]:
    return (*numbers, *(fill,) * (width - len(numbers)))


def _array(content: bytes, entry: TensorEntry) -> Index:
    """A tensor of a file in memory, not copied."""
    count = math.prod(entry.shape)
    return np.frombuffer(content, entry.dtype, count, entry.start).reshape(entry.shape)


def chunk_name(tensor: str, offset: tuple[int, ...]) -> str:
    """Name of a chunk within its file: `<state>/<parameter>@<offset>`."""
    return f"{tensor}@{','.join(map(str, offset))}"


def split_name(tensor: str) -> tuple[str, str]:
    """State and parameter of a tensor's name `<state>/<parameter>`."""
    state, _, parameter = tensor.partition("/")
    return state, parameter
