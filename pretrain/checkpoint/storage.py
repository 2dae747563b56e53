"""torch.distributed.checkpoint's storage as safetensors and JSON, so that no pickle is written or read.

DCP plans who writes and reads what; these two classes move the bytes. A piece is stored under
`<tensor>@<offset>` in the file of the rank that wrote it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.manifest import Manifest, Piece, StoredTensor, rank_file


def piece_key(name: str, offset: tuple[int, ...]) -> str:
    """Name of a piece within its file."""
    return f"{name}@{','.join(map(str, offset))}"


class SafetensorsWriter(StorageWriter):
    """Writes this rank's pieces into one file; on rank 0 `tensors` holds everybody's afterwards.

    Args:
        folder: Where the file goes.
        rank: Of this process.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.file = folder / rank_file(rank)
        self.tensors: dict[str, StoredTensor] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: a writer serves one checkpoint."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up: the folder exists."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """This rank's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """All plans as they are."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the file and wait until it is on the disk."""
        tensors: dict[str, torch.Tensor] = {}
        results: list[WriteResult] = []
        for item in plan.items:
            tensor = cast(torch.Tensor, planner.resolve_data(item))
            tensors[piece_key(item.index.fqn, tuple(item.index.offset or ()))] = tensor
            results.append(WriteResult(item.index, tensor.nbytes, self.file.name))
        save_file(tensors, self.file)
        with self.file.open("rb+") as file:
            os.fsync(file.fileno())
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Note where every piece went (rank 0)."""
        files = {result.index: result.storage_data for part in results for result in part}
        for name, stored in metadata.state_dict_metadata.items():
            assert isinstance(stored, TensorStorageMetadata)
            pieces = tuple(
                Piece(
                    files[MetadataIndex(name, chunk.offsets)], Box(tuple(chunk.offsets), tuple(chunk.sizes))
                )
                for chunk in stored.chunks
            )
            dtype = str(stored.properties.dtype).removeprefix("torch.")
            self.tensors[name] = StoredTensor(tuple(stored.size), pieces, dtype)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Checkpoints are given by folder, not by id."""
        return False

    def storage_meta(self) -> StorageMeta | None:
        """Nothing beside the manifest."""
        return None


class SafetensorsReader(StorageReader):
    """Reads the pieces that a rank wants.

    Args:
        folder: The checkpoint.
        manifest: Its manifest.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: a reader serves one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The manifest in DCP's words."""
        return Metadata({name: _described(tensor) for name, tensor in self._manifest.tensors.items()})

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """This rank's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """All plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what was asked for, file by file, each box read only as far as it is wanted."""
        wanted = _by_file(self._manifest.tensors, plan.items)
        for name, items in wanted.items():
            with safe_open(self._folder / name, framework="pt") as file:
                for item in items:
                    offset = tuple(item.storage_index.offset or ())
                    saved = file.get_slice(piece_key(item.storage_index.fqn, offset))
                    where = tuple(
                        slice(start, start + length)
                        for start, length in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    target = planner.resolve_tensor(item)
                    target.copy_(saved[where])
                    planner.commit_tensor(item, target)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Checkpoints are given by folder, not by id."""
        return False


def _described(tensor: StoredTensor) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=getattr(torch, tensor.dtype)),
        size=torch.Size(tensor.shape),
        chunks=[
            ChunkStorageMetadata(torch.Size(piece.box.offset), torch.Size(piece.box.shape))
            for piece in tensor.pieces
        ],
    )


def _by_file(tensors: Mapping[str, StoredTensor], items: list[ReadItem]) -> dict[str, list[ReadItem]]:
    names = {item.storage_index.fqn for item in items}
    files = {(name, piece.box.offset): piece.file for name in names for piece in tensors[name].pieces}
    wanted: dict[str, list[ReadItem]] = defaultdict(list)
    for item in items:
        wanted[files[item.storage_index.fqn, tuple(item.storage_index.offset or ())]].append(item)
    return wanted
