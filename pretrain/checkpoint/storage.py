"""torch.distributed.checkpoint's storage as safetensors and JSON, so that no pickle is written or read.

DCP plans what a rank writes and reads; these classes move the bytes. Each rank plans for itself: a thousand
ranks' plans are never gathered. A piece is stored under `<tensor>@<offset>` in the files of the rank that
wrote it.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner, create_default_global_save_plan
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from data.errors import InputError
from data.storage.store import Store
from pretrain.checkpoint.boxes import BoxedTensor
from pretrain.checkpoint.location import CheckpointPlace
from pretrain.checkpoint.manifest import Manifest, StoredFile, state_file
from pretrain.checkpoint.pieces import Piece, PieceTable
from pretrain.checkpoint.tensor_stream import Take, TensorBlocks, read_parts, read_whole

_WHOLE_FROM = 0.5  # share of a file that a rank wants, from which on it reads all of it and verifies it


def piece_key(name: str, offset: tuple[int, ...]) -> str:
    """Name of a piece within its file."""
    return f"{name}@{','.join(map(str, offset))}"


def parameter_of(name: str) -> tuple[str, str]:
    """State and parameter of a tensor's name `<state>/<parameter>`."""
    state, _, parameter = name.partition("/")
    return state, parameter


class OwnSavePlanner(DefaultSavePlanner):
    """Plans what this rank writes, without asking whether that is everything: the table of pieces tells."""

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """This rank's plan as it is."""
        return create_default_global_save_plan(all_plans)


class SafetensorsWriter(StorageWriter):
    """Writes this rank's pieces: one file with the weights, one with the moments.

    Args:
        place: Where checkpoints lie.
        step: Of the checkpoint.
        rank: Of this process.
        attempt: Digits of the attempt.

    Attributes:
        files: What was written.
        begun: Names of files of which something may be there.
    """

    def __init__(self, place: CheckpointPlace, step: int, rank: int, attempt: str) -> None:
        self._place, self._step, self._rank, self._attempt = place, step, rank, attempt
        self.files: dict[str, StoredFile] = {}
        self.begun: list[str] = []

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: a writer serves one attempt."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """This rank's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """This rank's plan as it is."""
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the files; they are durable when this returns.

        Raises:
            OSError: The storage refused.
        """
        tensors: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        results: list[WriteResult] = []
        for item in plan.items:
            tensor = cast(torch.Tensor, planner.resolve_data(item))
            state, _ = parameter_of(item.index.fqn)
            name = state_file(self._rank, state, self._attempt)
            tensors[name][piece_key(item.index.fqn, tuple(item.index.offset or ()))] = tensor
            results.append(WriteResult(item.index, tensor.nbytes, name))
        for name, held in tensors.items():
            blocks = TensorBlocks(held)
            self.begun.append(name)
            self._place.write(self._step, name, blocks, blocks.bytes)
            self.files[name] = blocks.stored()
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing to do: rank 0 commits when all ranks have written."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Checkpoints are given by place and step, not by id."""
        return False

    def storage_meta(self) -> StorageMeta | None:
        """Nothing beside the manifest."""
        return None


class SafetensorsReader(StorageReader):
    """Reads the pieces that a rank wants.

    Of a file of which the rank wants the most, all is read, and verified on the way; of others only what is
    wanted. What is wrong is collected, so that all ranks can be told before one of them stops.

    Args:
        store: The checkpoint.
        manifest: Its manifest.
        table: Its table of pieces.
        wanted: What this rank asks for, by name.

    Attributes:
        wrong: What is wrong with files, a line each.
        whole: Files that were read whole and so verified.
        touched: Files that something was read of.
    """

    def __init__(
        self, store: Store, manifest: Manifest, table: PieceTable, wanted: Mapping[str, BoxedTensor]
    ) -> None:
        self._store, self._manifest = store, manifest
        self.wrong: list[str] = []
        self.whole: set[str] = set()
        self.touched: set[str] = set()
        parameters: dict[str, list[Piece]] = {}
        self._pieces: dict[str, list[Piece]] = {}
        for name, tensor in wanted.items():
            _, parameter = parameter_of(name)
            if parameter not in parameters:
                parameters[parameter] = manifest.pieces(table, parameter, tensor.boxes)
            self._pieces[name] = parameters[parameter]

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to reset: a reader serves one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """In DCP's words the part of the checkpoint that this rank needs."""
        return Metadata({name: self._described(name, pieces) for name, pieces in self._pieces.items()})

    def _described(self, name: str, pieces: Sequence[Piece]) -> TensorStorageMetadata:
        tensor = self._manifest.tensors[name]
        return TensorStorageMetadata(
            properties=TensorProperties(dtype=getattr(torch, tensor.dtype)),
            size=torch.Size(tensor.shape),
            chunks=[
                ChunkStorageMetadata(torch.Size(piece.box.offset), torch.Size(piece.box.shape))
                for piece in pieces
            ],
        )

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """This rank's plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """This rank's plan as it is."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy what was asked for, file by file."""
        writers = {
            (name, piece.box.offset): piece for name, pieces in self._pieces.items() for piece in pieces
        }
        takes: dict[str, dict[str, list[Take]]] = defaultdict(lambda: defaultdict(list))
        bytes_wanted: dict[str, int] = defaultdict(int)
        for item in plan.items:
            name, offset = item.storage_index.fqn, tuple(item.storage_index.offset or ())
            piece = writers[name, offset]
            file = self._manifest.file_of(piece.writer, parameter_of(name)[0])
            take = _take(item, piece, planner)
            takes[file][piece_key(name, offset)].append(take)
            bytes_wanted[file] += (
                take.target.numel() * getattr(torch, self._manifest.tensors[name].dtype).itemsize
            )
        for file, wanted in sorted(takes.items()):
            self._read(file, wanted, bytes_wanted[file])
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _read(self, file: str, wanted: Mapping[str, Sequence[Take]], count: int) -> None:
        stored = self._manifest.files[file]
        self.touched.add(file)
        try:
            if count >= _WHOLE_FROM * stored.bytes:
                self.whole.add(file)
                read_whole(self._store, file, stored, wanted)
            else:
                read_parts(self._store, file, stored, wanted)
        except InputError as error:
            self.wrong.append(str(error))

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Checkpoints are given by store, not by id."""
        return False


def _take(item: ReadItem, piece: Piece, planner: LoadPlanner) -> Take:
    """What DCP wants of a piece; it goes to its place as it is read."""
    source = tuple(
        slice(start, start + length) for start, length in zip(item.storage_offsets, item.lengths, strict=True)
    )
    return Take(piece.box.shape, source, planner.resolve_tensor(item))
