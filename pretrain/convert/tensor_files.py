"""Safetensors files of floats, read and written block by block: no more than a block is in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from data.errors import InputError
from data.safetensors_header import (
    LENGTH_BYTES,
    HeaderError,
    TensorEntry,
    dtype_bytes,
    header_length,
    parse_header,
    unique_keys,
)
from data.storage.bulk_store import Block
from pretrain.checkpoint.manifest import DTYPES
from pretrain.checkpoint.tensor_blocks import BLOCK_BYTES, LazyTensor, byte_view, file_header

_WORDS = 1 << 16  # looked at together, so that intermediate results stay in the cache
_EXPONENTS = {"float32": 0x7F80_0000, "bfloat16": 0x7F80, "float16": 0x7C00}  # all ones: infinite or NaN


class TensorFile:
    """A safetensors file whose header was checked.

    Args:
        path: Of the file.

    Attributes:
        path: Of the file.
        entries: Its tensors by name, in the order of the file; of `manifest.DTYPES`.

    Raises:
        InputError: It cannot be read, is no complete safetensors file, or holds other than floats of 16
            or 32 bits.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = header_length(file.read(LENGTH_BYTES), size)
                header = parse_header(file.read(length), size)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        except HeaderError as error:
            raise InputError(
                f"{path}: not a complete safetensors file ({error}); download or write it again"
            ) from error
        for name, entry in header.tensors.items():
            if entry.dtype not in DTYPES:
                raise InputError(
                    f"{path}: {name} is of dtype {entry.dtype}, expected one of {', '.join(DTYPES)}; "
                    "save it as one of these (quantised weights: convert them back first)"
                )
        self.entries: dict[str, TensorEntry] = header.tensors

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor, block by block."""
        entry = self.entries[name]
        missing = entry.bytes
        try:
            with self.path.open("rb") as file:
                file.seek(entry.start)
                while missing and (block := file.read(min(BLOCK_BYTES, missing))):
                    missing -= len(block)
                    yield block
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error})") from error
        if missing:
            raise InputError(f"{self.path}: ends before {name} does; was it changed meanwhile?")

    def tensor(self, name: str) -> Tensor:
        """A tensor in memory of its own."""
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
        end, view = 0, byte_view(tensor)
        for block in self.blocks(name):
            view[end : end + len(block)] = block
            end += len(block)
        return tensor


def write_tensors(path: Path, tensors: Sequence[LazyTensor], progress: Callable[[int], None]) -> None:
    """Write a file and wait until it is on the disk.

    Args:
        path: New file.
        tensors: In the order of the file; wide dtypes first keep all aligned.
        progress: Called with the number of bytes after each block.
    """
    with path.open("wb") as file:
        file.write(file_header(tensors))
        for tensor in tensors:
            _write_blocks(file, tensor, progress)
        file.flush()
        os.fsync(file.fileno())


def _write_blocks(file: BinaryIO, tensor: LazyTensor, progress: Callable[[int], None]) -> None:
    # A function of its own: in the caller, the last block would keep its whole tensor in memory.
    for block in tensor.blocks():
        progress(file.write(block))


def split_into_files(tensors: Iterable[LazyTensor], max_bytes: int) -> list[list[LazyTensor]]:
    """Split tensors into files of at most `max_bytes`; a larger tensor gets a file of its own."""
    files: list[list[LazyTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if files[-1] and size + tensor.bytes > max_bytes:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.bytes
    return [sorted(file, key=lambda tensor: -dtype_bytes(tensor.dtype)) for file in files]


def is_finite(block: Block, dtype: str) -> bool:
    """Whether none of a block's numbers is infinite or NaN."""
    exponent = _EXPONENTS[dtype]
    words = np.frombuffer(block, f"<u{dtype_bytes(dtype)}")
    parts = (words[start : start + _WORDS] for start in range(0, len(words), _WORDS))
    return all((part & part.dtype.type(exponent)).max() < exponent for part in parts)


def check_range(name: str, values: Tensor, converted: Tensor) -> None:
    """Refuse weights that became infinite; float16 is the only dtype that may be too small for one."""
    if converted.dtype == torch.float16 and not torch.equal(converted.isfinite(), values.isfinite()):
        raise InputError(
            f"{name}: has values beyond {torch.finfo(torch.float16).max:.0f}; export with dtype=bfloat16"
        )


def read_object(path: Path, max_bytes: int = 1 << 28) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: It cannot be read, is larger than `max_bytes`, or holds something else.
    """
    try:
        with path.open("rb") as file:
            text = file.read(max_bytes + 1)
        values = json.loads(text, object_pairs_hook=unique_keys) if len(text) <= max_bytes else None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        found = "a larger file" if len(text) > max_bytes else f"a {type(values).__name__}"
        raise InputError(f"{path}: expected a JSON object of at most {max_bytes} bytes, found {found}")
    return values
