"""Flat ranges of a tensor as rectangular boxes, and the tensor type that DCP saves and loads them by.

ZeRO gives a rank a flat range [a, b) of its (tensor-parallel) part of a parameter. In row-major order
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
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangular part of a tensor.

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

    def shifted(self, by: Sequence[int]) -> Box:
        """The same box, further along every dimension."""
        return Box(tuple(o + b for o, b in zip(self.offset, by, strict=True)), self.shape)


def boxes_of_range(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """Cut the flat range [start, stop) of a row-major tensor into boxes, in flat order."""
    if start >= stop:
        return []
    if len(shape) <= 1:
        return [Box((start,), (stop - start,)) if shape else Box((), ())]
    row = math.prod(shape[1:])
    first, before = divmod(start, row)
    last, after = divmod(stop, row)
    if first == last:
        return _within(shape, first, before, after)
    found: list[Box] = []
    if before:
        found += _within(shape, first, before, row)
        first += 1
    if last > first:
        found.append(Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:])))
    if after:
        found += _within(shape, last, 0, after)
    return found


def _within(shape: Sequence[int], row: int, start: int, stop: int) -> list[Box]:
    return [Box((row, *box.offset), (1, *box.shape)) for box in boxes_of_range(shape[1:], start, stop)]


def boxes_of_part(
    part: Sequence[int], dimension: int | None, tensor_rank: int, start: int, stop: int
) -> tuple[Box, ...]:
    """The flat range [start, stop) of a tensor-parallel part, as boxes of the global tensor.

    Args:
        part: Shape of the part.
        dimension: Along which the tensor is shared out over tensor-parallel ranks; None: it is not.
        tensor_rank: Whose part it is.
        start: First element of the part, in row-major order.
        stop: Last element, exclusive.
    """
    shift = [0] * len(part)
    if dimension is not None:
        shift[dimension] = tensor_rank * part[dimension]
    return tuple(box.shifted(shift) for box in boxes_of_range(part, start, stop))


class BoxedTensor(torch.Tensor):
    """A rank's boxes of one global tensor, as torch.distributed.checkpoint asks for them.

    DCP saves any tensor that has the three dunder methods below (its `_Checkpointable` protocol), and on
    loading copies from the boxes that were saved whatever the boxes that are wanted overlap.

    Args:
        shape: Of the global tensor.
        boxes: This rank's part of it.
        flat: float32 [sum of the boxes' sizes], the boxes' content one after the other; not copied.
    """

    _pieces: list[tuple[Box, torch.Tensor]]

    @staticmethod
    def __new__(cls, shape: Sequence[int], boxes: Sequence[Box], flat: torch.Tensor) -> BoxedTensor:
        """Make the wrapper; it has a shape and pieces, but no memory of its own."""
        tensor = torch.Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=flat.dtype)
        parts = flat.split([box.size for box in boxes])
        tensor._pieces = [(box, part.view(box.shape)) for box, part in zip(boxes, parts, strict=True)]
        return tensor

    @property
    def boxes(self) -> list[Box]:
        """This rank's part."""
        return [box for box, _ in self._pieces]

    def __init__(self, *args: Any) -> None:
        pass  # torch.Tensor's own takes none of the arguments of __new__

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Only DCP reads a boxed tensor: it has no arithmetic."""
        raise NotImplementedError(f"{func} on a boxed tensor")

    def __create_write_items__(self, fqn: str, tensor: object) -> list[WriteItem]:
        """What this rank has to write."""
        return [
            WriteItem(
                index=MetadataIndex(fqn, torch.Size(box.offset), number),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.shape)),
                    properties=TensorProperties.create_from_tensor(part),
                    size=self.size(),
                ),
            )
            for number, (box, part) in enumerate(self._pieces)
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """What this rank wants to read."""
        return [
            ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.shape)) for box, _ in self._pieces
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        """The memory of one box."""
        return next(part for box, part in self._pieces if torch.Size(box.offset) == index.offset)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"BoxedTensor({tuple(self.size())}, {len(self._pieces)} boxes)"
