"""Storage of torch.distributed.checkpoint (DCP) as safetensors and JSON; no pickle is written or read.

DCP plans what a rank writes and reads; these classes move the bytes. Each rank plans for itself: a thousand
ranks' plans are never gathered.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from data.errors import InputError, StorageError
from data.storage.store import Store
from pretrain.checkpoint.boxed_tensor import BoxedTensor, box_metadata
from pretrain.checkpoint.chunks import Chunk, ChunkTable, chunk_name, split_name
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.manifest import Manifest, StoredFile, state_file
from pretrain.checkpoint.tensor_blocks import SafetensorsBlocks
from pretrain.checkpoint.tensor_stream import ReadRequest, read_partially, read_verified

_VERIFY_FROM = 0.5  # share of a file that a rank requests, from which on it reads all of it and verifies it


SHARD = "shard"
"""The one entry of the state dict that `LocalSavePlanner` saves: DCP logs every entry."""


class LocalSavePlanner(DefaultSavePlanner):
    """Plans what this rank writes, without checking it against other ranks: the chunk table is checked.

    The state dict is `{SHARD: boxed tensors by name}`.
    """

    def set_up_planner(
        self, state_dict: Any, storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the tensors as they are: nothing to flatten."""
        self.state_dict: dict[str, BoxedTensor] = state_dict[SHARD]

    def create_local_plan(self) -> SavePlan:
        """Plan to write every box."""
        items = [
            item
            for name, tensor in self.state_dict.items()
            for item in tensor.__create_write_items__(name, tensor)
        ]
        self.plan = SavePlan(items)
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Return this rank's plan unchanged."""
        return create_default_global_save_plan(all_plans)


class SafetensorsWriter(StorageWriter):
    """Writes this rank's chunks: one file with the weights, one with the moments, one with the average.

    Args:
        location: Of the run's checkpoints.
        step: Of the checkpoint.
        rank: Of this process.
        attempt: Id of the attempt.

    Attributes:
        files: The files that are written.
        started: Names of files that were started, complete or not.
    """

    def __init__(self, location: CheckpointLocation, step: int, rank: int, attempt: str) -> None:
        self._location, self._step, self._rank, self._attempt = location, step, rank, attempt
        self.files: dict[str, StoredFile] = {}
        self.started: list[str] = []

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: a writer serves one attempt."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return this rank's plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Return this rank's plan unchanged."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the files; they are durable when this returns.

        Raises:
            OSError: The storage refused.
        """
        files: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        results: list[WriteResult] = []
        for item in plan.items:
            tensor = cast(torch.Tensor, planner.resolve_data(item))
            state, _ = split_name(item.index.fqn)
            name = state_file(self._rank, state, self._attempt)
            files[name][chunk_name(item.index.fqn, tuple(item.index.offset or ()))] = tensor
            results.append(WriteResult(item.index, tensor.nbytes, name))
        for name, tensors in files.items():
            blocks = SafetensorsBlocks(tensors)
            self.started.append(name)
            self._location.write(self._step, name, blocks, blocks.bytes)
            self.files[name] = blocks.stored_file()
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing to do: rank 0 commits when all ranks have written."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """No id is valid: checkpoints are given by location and step."""
        return False

    def storage_meta(self) -> StorageMeta | None:
        """Nothing beside the manifest."""
        return None


class SafetensorsReader(StorageReader):
    """Reads the parts of chunks that a rank requests.

    A file of which the rank requests the most is read whole and verified on the way; of others only the
    requested rows are read. Errors are collected, so that every rank can report them before any stops.

    Args:
        store: The checkpoint.
        manifest: Its manifest.
        table: Its chunk table.
        tensors: What this rank requests, by name.

    Attributes:
        errors: What is wrong with files, a line each.
        unanswered: What the storage said where it did not give a file.
        verified: Files that were read whole.
        touched: Files of which anything was read.
    """

    def __init__(
        self, store: Store, manifest: Manifest, table: ChunkTable, tensors: Mapping[str, BoxedTensor]
    ) -> None:
        self._store, self._manifest = store, manifest
        self.errors: list[str] = []
        self.unanswered: list[str] = []
        self.verified: set[str] = set()
        self.touched: set[str] = set()
        of_parameter: dict[str, list[Chunk]] = {}
        self._chunks: dict[str, list[Chunk]] = {}
        for name, tensor in tensors.items():
            _, parameter = split_name(name)
            if parameter not in of_parameter:
                of_parameter[parameter] = manifest.chunks(table, parameter, tensor.boxes)
            self._chunks[name] = of_parameter[parameter]

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: a reader serves one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Describe the part of the checkpoint that this rank needs."""
        return Metadata({name: self._describe(name, chunks) for name, chunks in self._chunks.items()})

    def _describe(self, name: str, chunks: Sequence[Chunk]) -> TensorStorageMetadata:
        tensor = self._manifest.tensors[name]
        return TensorStorageMetadata(
            properties=TensorProperties(dtype=getattr(torch, tensor.dtype)),
            size=torch.Size(tensor.shape),
            chunks=[box_metadata(chunk.box) for chunk in chunks],
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return this rank's plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return this rank's plan unchanged."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what is requested, file by file."""
        by_offset = {
            (name, chunk.box.offset): chunk for name, chunks in self._chunks.items() for chunk in chunks
        }
        requests: dict[str, dict[str, list[ReadRequest]]] = defaultdict(lambda: defaultdict(list))
        requested_bytes: dict[str, int] = defaultdict(int)
        for item in plan.items:
            name, offset = item.storage_index.fqn, tuple(item.storage_index.offset or ())
            chunk = by_offset[name, offset]
            file = self._manifest.file_of(chunk.writer, split_name(name)[0])
            request = _read_request(item, chunk, planner)
            requests[file][chunk_name(name, offset)].append(request)
            itemsize = getattr(torch, self._manifest.tensors[name].dtype).itemsize
            requested_bytes[file] += request.target.numel() * itemsize
        for file, of_file in sorted(requests.items()):
            self._read(file, of_file, requested_bytes[file])
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read(self, file: str, requests: Mapping[str, Sequence[ReadRequest]], count: int) -> None:
        """Read a file of which `count` bytes are requested."""
        stored = self._manifest.files[file]
        self.touched.add(file)
        try:
            if count >= _VERIFY_FROM * stored.bytes:
                self.verified.add(file)
                read_verified(self._store, file, stored, requests)
            else:
                read_partially(self._store, file, stored, requests)
        except StorageError as error:
            self.unanswered.append(str(error))
        except InputError as error:
            self.errors.append(str(error))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """No id is valid: checkpoints are given by store."""
        return False


def _read_request(item: ReadItem, chunk: Chunk, planner: LoadPlanner) -> ReadRequest:
    """What DCP requests of a chunk; it is copied to its target while it is read."""
    source = tuple(
        slice(start, start + length) for start, length in zip(item.storage_offsets, item.lengths, strict=True)
    )
    return ReadRequest(chunk.box.shape, source, planner.resolve_tensor(item))
