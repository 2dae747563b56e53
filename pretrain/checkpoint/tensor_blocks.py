"""Tensors on their way into a safetensors file, block by block: no file is ever whole in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from data.safetensors_header import encode_header, tensor_bytes
from data.storage.bulk_store import Block
from pretrain.checkpoint.manifest import StoredFile

BLOCK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor to be written, whose bytes are made when they are needed.

    Attributes:
        name: Of the tensor.
        dtype: `float32`, `bfloat16` or `float16`.
        shape: Of the tensor.
        blocks: Makes its bytes, in row-major order.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Block]]

    @property
    def bytes(self) -> int:
        """Length of the tensor."""
        return tensor_bytes(self.dtype, self.shape)


class SafetensorsBlocks:
    """The bytes of a file of tensors; its checksum is known after an iteration to the end.

    Args:
        tensors: Contiguous fp32 tensors on the host, by name; not copied.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = [
            LazyTensor(name, "float32", tuple(tensor.shape), partial(tensor_blocks, tensor))
            for name, tensor in tensors.items()
        ]
        self._header = file_header(self._tensors)
        self._digest = hashlib.sha256()
        self.bytes = len(self._header) + sum(tensor.bytes for tensor in self._tensors)

    def __iter__(self) -> Iterator[Block]:
        self._digest = hashlib.sha256()
        for block in self._blocks():
            self._digest.update(block)
            yield block

    def _blocks(self) -> Iterator[Block]:
        yield self._header
        for tensor in self._tensors:
            yield from tensor.blocks()

    def stored_file(self) -> StoredFile:
        """Length and checksum of the blocks of the last iteration."""
        return StoredFile(self.bytes, self._digest.hexdigest())


def file_header(tensors: Sequence[LazyTensor]) -> bytes:
    """Encode the bytes of a file before its data."""
    return encode_header([(t.name, t.dtype, t.shape) for t in tensors], {"format": "pt"})


def tensor_blocks(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor, without a copy."""
    view = byte_view(tensor)
    for start in range(0, len(view), BLOCK_BYTES):
        yield view[start : start + BLOCK_BYTES]


def byte_view(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor as bytes."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
