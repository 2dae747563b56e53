"""Flat ranges of a tensor as rectangular boxes.

ZeRO gives a rank a flat range [a, b) of its (tensor-parallel) partition of a parameter. In row-major order
such a range is at most 2 d - 1 boxes of a d-dimensional tensor; here a = 3, b = 14 in a 4 x 5 matrix::

    . . . x x      rest of the first row
    y y y y y      whole rows
    z z z z .      beginning of the last row
    . . . . .
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular region of a tensor.

    Attributes:
        offset: Its first element.
        shape: Its size in every dimension.
    """

    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The region as an index of the tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offset, self.shape, strict=True))

    def shifted(self, by: Sequence[int]) -> Box:
        """The same box, further along every dimension."""
        return Box(tuple(o + b for o, b in zip(self.offset, by, strict=True)), self.shape)


def boxes_of_range(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """Cut the flat range [start, stop) of a row-major tensor into boxes, in flat order."""
    if start >= stop:
        return []
    if len(shape) <= 1:
        return [Box((start,), (stop - start,)) if shape else Box((), ())]
    row_size = math.prod(shape[1:])
    first, before = divmod(start, row_size)
    last, after = divmod(stop, row_size)
    if first == last:
        return _boxes_within_row(shape, first, before, after)
    boxes: list[Box] = []
    if before:
        boxes += _boxes_within_row(shape, first, before, row_size)
        first += 1
    if last > first:
        boxes.append(Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:])))
    if after:
        boxes += _boxes_within_row(shape, last, 0, after)
    return boxes


def _boxes_within_row(shape: Sequence[int], row: int, start: int, stop: int) -> list[Box]:
    return [Box((row, *box.offset), (1, *box.shape)) for box in boxes_of_range(shape[1:], start, stop)]


def global_boxes(
    partition: Sequence[int], dimension: int | None, tensor_rank: int, start: int, stop: int
) -> tuple[Box, ...]:
    """Cut the flat range [start, stop) of a tensor-parallel partition into boxes of the global tensor.

    Args:
        partition: Shape of the partition.
        dimension: Along which the tensor is divided among tensor-parallel ranks; None: it is replicated.
        tensor_rank: Rank whose partition it is.
        start: First element of the partition, in row-major order.
        stop: Last element, exclusive.
    """
    shift = [0] * len(partition)
    if dimension is not None:
        shift[dimension] = tensor_rank * partition[dimension]
    return tuple(box.shifted(shift) for box in boxes_of_range(partition, start, stop))
