"""The tensor type by which torch.distributed.checkpoint (DCP) saves and loads the boxes of a rank.

Apart from `boxes`: DCP takes most of a second to import, and what only looks at checkpoints or reads weights
has no use for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from pretrain.checkpoint.boxes import Box


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
                    chunk=box_metadata(box),
                    properties=TensorProperties.create_from_tensor(part),
                    size=self.size(),
                ),
            )
            for number, (box, part) in enumerate(self._parts)
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """List what this rank reads."""
        return [box_metadata(box) for box in self.boxes]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        """Return the memory of one box."""
        return next(part for box, part in self._parts if torch.Size(box.offset) == index.offset)

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"BoxedTensor({tuple(self.size())}, {len(self._parts)} boxes)"


def box_metadata(box: Box) -> ChunkStorageMetadata:
    """A box as DCP describes it."""
    return ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.shape))
