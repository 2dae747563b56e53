"""The chunk table: which rank stored which box of which parameter, as arrays.

One row is one chunk. All states of a parameter (master weights, moments) are cut in the same way. With a
thousand ranks there are some hundred thousand rows: rank 0 concatenates the ranks' arrays, and a reader
selects rows by comparing whole columns, so that no Python loop runs over the chunks of all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data.errors import InputError
from pretrain.checkpoint.boxes import Box

_COLUMNS = ("parameter", "writer", "offset", "shape")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One stored box of a parameter and the rank that wrote it."""

    writer: int
    box: Box


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """All chunks of a checkpoint, ordered by parameter.

    Attributes:
        parameter: int64 [n], position of the parameter among all names in ascending order.
        writer: int64 [n], rank that wrote the chunk.
        offset: int64 [n, D], first element of the box; D is the largest number of dimensions.
        shape: int64 [n, D], its size; 1 in dimensions that the parameter does not have.
    """

    parameter: NDArray[np.int64]
    writer: NDArray[np.int64]
    offset: NDArray[np.int64]
    shape: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, Box]], dimensions: int) -> ChunkTable:
        """Make a table of rows (parameter, writer, box)."""
        table = cls(
            np.array([row[0] for row in rows], np.int64),
            np.array([row[1] for row in rows], np.int64),
            _padded([row[2].offset for row in rows], dimensions, 0),
            _padded([row[2].shape for row in rows], dimensions, 1),
        )
        return table._sorted()

    @classmethod
    def concatenated(cls, tables: Sequence[ChunkTable]) -> ChunkTable:
        """Join the tables of several ranks."""
        columns = (np.concatenate([getattr(table, name) for table in tables]) for name in _COLUMNS)
        return cls(*columns)._sorted()

    def _sorted(self) -> ChunkTable:
        order = np.argsort(self.parameter, kind="stable")
        return ChunkTable(*(getattr(self, name)[order] for name in _COLUMNS))

    def encode(self) -> bytes:
        """Encode as a safetensors file."""
        return save({name: np.ascontiguousarray(getattr(self, name)) for name in _COLUMNS})

    @classmethod
    def decode(cls, where: str, content: bytes) -> ChunkTable:
        """Decode a safetensors file; `where` leads the messages.

        Raises:
            InputError: It is not one, or holds other arrays.
        """
        try:
            columns = load(content)
            table = cls(*(columns[name] for name in _COLUMNS))
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"{where}: not a table of chunks ({error!r}); take another checkpoint"
            ) from error
        rows = len(table.parameter)
        flat = [table.parameter.shape, table.writer.shape] == [(rows,)] * 2
        wide = table.offset.shape == table.shape.shape and table.offset.shape[:1] == (rows,)
        if not (flat and wide) or any(getattr(table, name).dtype != np.int64 for name in _COLUMNS):
            raise InputError(f"{where}: not a table of chunks (wrong shapes); take another checkpoint")
        return table

    def inconsistency(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """Describe why the chunks do not make up parameters of these shapes; None: they do.

        Args:
            shapes: Of all parameters by name.
        """
        names = sorted(shapes)
        sides = _padded([shapes[name] for name in names], self.offset.shape[1], 1)
        if len(self.parameter) and not 0 <= self.parameter.min() <= self.parameter.max() < len(names):
            return "a chunk of an unknown parameter"
        inside = (self.offset >= 0) & (self.shape >= 1) & (self.offset + self.shape <= sides[self.parameter])
        if not inside.all():
            return f"a chunk beyond {names[int(self.parameter[~inside.all(axis=1)][0])]}"
        sizes = np.zeros(len(names), np.int64)
        np.add.at(sizes, self.parameter, self.shape.prod(axis=1))
        if (wrong := np.flatnonzero(sizes != sides.prod(axis=1))).size:
            return f"the chunks of {names[int(wrong[0])]} do not make it up"
        return None

    def chunks(self, parameter: int, dimensions: int, boxes: Sequence[Box] | None = None) -> list[Chunk]:
        """List the chunks of one parameter that overlap any of the boxes (None: all)."""
        rows = slice(*np.searchsorted(self.parameter, [parameter, parameter + 1]))
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


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> NDArray[np.int64]:
    """Rows of different lengths as one array [n, width]."""
    return np.array([(*row, *(fill,) * (width - len(row))) for row in rows], np.int64).reshape(-1, width)


def chunk_name(tensor: str, offset: tuple[int, ...]) -> str:
    """Name of a chunk within its file: `<state>/<parameter>@<offset>`."""
    return f"{tensor}@{','.join(map(str, offset))}"


def split_name(tensor: str) -> tuple[str, str]:
    """State and parameter of a tensor's name `<state>/<parameter>`."""
    state, _, parameter = tensor.partition("/")
    return state, parameter
