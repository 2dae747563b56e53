"""Where every piece of every parameter lies, as arrays, so that nobody loops over the pieces of all ranks.

One row is one box of a parameter that one rank wrote. All states of a parameter (master weights, moments)
are cut in the same way. With a thousand ranks there are some hundred thousand rows: rank 0 puts the
ranks' arrays behind each other, and a reader picks what it wants by comparing whole columns.
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
class Piece:
    """One box of a parameter and the number of the rank that wrote it."""

    writer: int
    box: Box


@dataclass(frozen=True, slots=True)
class PieceTable:
    """All pieces of a checkpoint, ordered by parameter.

    Attributes:
        parameter: int64 [n], place of the parameter among all names in ascending order.
        writer: int64 [n], number of the rank that wrote the piece.
        offset: int64 [n, D], first element of the box; D is the largest number of dimensions.
        shape: int64 [n, D], its size; 1 in dimensions that the parameter does not have.
    """

    parameter: NDArray[np.int64]
    writer: NDArray[np.int64]
    offset: NDArray[np.int64]
    shape: NDArray[np.int64]

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, Box]], dimensions: int) -> PieceTable:
        """From (parameter, writer, box) of one rank."""
        table = cls(
            np.array([row[0] for row in rows], np.int64),
            np.array([row[1] for row in rows], np.int64),
            _padded([row[2].offset for row in rows], dimensions, 0),
            _padded([row[2].shape for row in rows], dimensions, 1),
        )
        return table._ordered()

    @classmethod
    def joined(cls, parts: Sequence[PieceTable]) -> PieceTable:
        """The pieces of several ranks."""
        columns = (np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS)
        return cls(*columns)._ordered()

    def _ordered(self) -> PieceTable:
        order = np.argsort(self.parameter, kind="stable")
        return PieceTable(*(getattr(self, name)[order] for name in _COLUMNS))

    def encode(self) -> bytes:
        """As a safetensors file."""
        return save({name: np.ascontiguousarray(getattr(self, name)) for name in _COLUMNS})

    @classmethod
    def decode(cls, where: str, content: bytes) -> PieceTable:
        """From a safetensors file.

        Raises:
            InputError: It is none, or holds other arrays.
        """
        try:
            found = load(content)
            table = cls(*(found[name] for name in _COLUMNS))
        except (SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                f"{where}: not a table of pieces ({error!r}); take another checkpoint"
            ) from error
        rows = len(table.parameter)
        flat = [table.parameter.shape, table.writer.shape] == [(rows,)] * 2
        wide = table.offset.shape == table.shape.shape and table.offset.shape[:1] == (rows,)
        if not (flat and wide) or any(getattr(table, name).dtype != np.int64 for name in _COLUMNS):
            raise InputError(f"{where}: not a table of pieces (wrong shapes); take another checkpoint")
        return table

    def problem(self, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """What is wrong if these are to make up parameters of these shapes; None: nothing.

        Args:
            shapes: Of all parameters by name.
        """
        names = sorted(shapes)
        sides = _padded([shapes[name] for name in names], self.offset.shape[1], 1)
        if len(self.parameter) and not 0 <= self.parameter.min() <= self.parameter.max() < len(names):
            return "a piece of an unknown parameter"
        inside = (self.offset >= 0) & (self.shape >= 1) & (self.offset + self.shape <= sides[self.parameter])
        if not inside.all():
            return f"a piece beyond {names[int(self.parameter[~inside.all(axis=1)][0])]}"
        sizes = np.zeros(len(names), np.int64)
        np.add.at(sizes, self.parameter, self.shape.prod(axis=1))
        if (wrong := np.flatnonzero(sizes != sides.prod(axis=1))).size:
            return f"the pieces of {names[int(wrong[0])]} do not make it up"
        return None

    def pieces(self, parameter: int, dimensions: int, boxes: Sequence[Box] | None = None) -> list[Piece]:
        """The pieces of one parameter that have something of any of the boxes (None: all)."""
        rows = slice(*np.searchsorted(self.parameter, [parameter, parameter + 1]))
        offset, shape = self.offset[rows, :dimensions], self.shape[rows, :dimensions]
        wanted = np.full(len(offset), boxes is None)
        for box in boxes or ():
            start, size = np.array(box.offset, np.int64), np.array(box.shape, np.int64)
            wanted |= ((offset < start + size) & (start < offset + shape)).all(axis=1)
        return [
            Piece(writer, Box(tuple(first), tuple(sides)))
            for writer, first, sides in zip(
                self.writer[rows][wanted].tolist(),
                offset[wanted].tolist(),
                shape[wanted].tolist(),
                strict=True,
            )
        ]


def _padded(rows: Sequence[Sequence[int]], width: int, with_: int) -> NDArray[np.int64]:
    """Rows of different lengths as one array [n, width]."""
    return np.array([(*row, *(with_,) * (width - len(row))) for row in rows], np.int64).reshape(-1, width)
