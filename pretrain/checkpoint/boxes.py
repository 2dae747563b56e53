"""Flat ranges of a tensor as rectangular boxes, and the tensor type that DCP saves and loads them by.

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
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType


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

    def shifted(self, by: Sequence[int]) -> Box:
        """The same box, further along every dimension."""
        return Box(tuple(o + b for o, b in zip(self.offset, by, strict=True)), self.shape)

    def metadata(self) -> ChunkStorageMetadata:
        """The box as DCP describes it."""
        return ChunkStorageMetadata(torch.Size(self.offset), torch.Size(self.shape))


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


class BoxedTensor(torch.Tensor):
    """A rank's boxes of one global tensor, in the form that torch.distributed.checkpoint (DCP) expects.

    DCP saves any tensor that has the three dunder methods below (its `_Checkpointable` protocol). On loading,
    it copies into the boxes whatever saved chunks overlap them.

    Args:
        shape: Of the global tensor.
        boxes: This rank's part of it.
        flat: float32 [sum of the boxes' sizes], the boxes' content one after the other; not copied.
    """

    _parts: list[tuple[Box, torch.Tensor]]

    @staticmethod
    def __new__(cls, shape: Sequence[int], boxes: Sequence[Box], flat: torch.Tensor) -> BoxedTensor:
        """Make the wrapper; it has a shape and boxes, but no memory of its own."""
        tensor = torch.Tensor._make_wrapper_subclass(cls, torch.Size(shape), dtype=flat.dtype)
        parts = flat.split([box.size for box in boxes])
        tensor._parts = [(box, part.view(box.shape)) for box, part in zip(boxes, parts, strict=True)]
        return tensor

    @property
    def boxes(self) -> list[Box]:
        """This rank's part."""
        return [box for box, _ in self._parts]

    def __init__(self, *args: Any) -> None:
        pass  # torch.Tensor's own takes none of the arguments of __new__

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse arithmetic: only DCP reads a boxed tensor."""
        raise NotImplementedError(f"{func} on a boxed tensor")

    def __create_write_items__(self, fqn: str, tensor: object) -> list[WriteItem]:
        """List what this rank writes."""
        return [
            WriteItem(
                index=MetadataIndex(fqn, torch.Size(box.offset), number),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=box.metadata(),
                    properties=TensorProperties.create_from_tensor(part),
                    size=self.size(),
                ),
            )
            for number, (box, part) in enumerate(self._parts)
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """List what this rank reads."""
        return [box.metadata() for box in self.boxes]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        """Return the memory of one box."""
        return next(part for box, part in self._parts if torch.Size(box.offset) == index.offset)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"BoxedTensor({tuple(self.size())}, {len(self._parts)} boxes)"
