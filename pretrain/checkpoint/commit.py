"""One attempt to write a checkpoint: every rank writes its shard, then rank 0 commits all of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from data.errors import InputError
from pretrain.checkpoint.boxed_tensor import BoxedTensor
from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.chunks import ChunkTable, split_name
from pretrain.checkpoint.dcp_storage import SHARD, LocalSavePlanner, SafetensorsWriter
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.manifest import (
    Manifest,
    StoredAverage,
    StoredFile,
    StoredTensor,
    chunk_table_file,
)
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes

_ALIGNMENT = 8  # of a message's parts


class AttemptFailedError(Exception):
    """Ranks could not write their shards; the message names them and the causes."""


@dataclass(frozen=True)
class Shard:
    """What one rank writes.

    Attributes:
        tensors: Its boxes of `<state>/<parameter>`, in host memory.
        model: The network.
    """

    tensors: Mapping[str, BoxedTensor]
    model: ModelConfig

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Global shape of every parameter of the network."""
        return expected_shapes(self.model)


@dataclass(frozen=True)
class WrittenShard:
    """What one rank reports to rank 0 after writing: some kilobytes, whatever the size of the network.

    Attributes:
        files: Its files.
        table: Its chunks.
        states: By state, which parameters (in ascending order of their names) it wrote: a bit for each, as
            numpy's `packbits`, uint8.
        started: Files that were started, complete or not; not reported.
        error: What the storage said; empty: all is written.
    """

    files: Mapping[str, StoredFile]
    table: ChunkTable
    states: Mapping[str, NDArray[np.uint8]]
    started: list[str] = field(default_factory=list)
    error: str = ""

    def encode(self) -> bytes:
        """Encode as a message: the length of a JSON header, the header, the rows of the table."""
        rows = self.table.rows()
        header = {
            "files": {name: [file.bytes, file.sha256] for name, file in self.files.items()},
            "states": {state: held.tobytes().hex() for state, held in self.states.items()},
            "error": self.error,
            "rows": [rows.dtype.name, *rows.shape],
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(_ALIGNMENT, "little") + text + rows.tobytes()

    @classmethod
    def decode(cls, message: NDArray[np.uint8]) -> WrittenShard:
        """Decode a message; the table is not copied."""
        end = _ALIGNMENT + int.from_bytes(message[:_ALIGNMENT].tobytes(), "little")
        header = json.loads(message[_ALIGNMENT:end].tobytes().decode())
        dtype, *shape = header["rows"]
        return cls(
            {name: StoredFile(*file) for name, file in header["files"].items()},
            ChunkTable.of_rows(message[end:].view(dtype).reshape(shape)),
            {state: np.frombuffer(bytes.fromhex(held), np.uint8) for state, held in header["states"].items()},
            error=header["error"],
        )


def write_shard(
    location: CheckpointLocation, step: int, rank: int, attempt: str, shard: Shard
) -> WrittenShard:
    """Write a rank's files; an error of the storage is in the result."""
    numbers = {name: number for number, name in enumerate(sorted(shard.shapes))}
    writer = SafetensorsWriter(location, step, rank, attempt)
    message = ""
    try:
        if shard.tensors:
            tensors = {SHARD: dict(shard.tensors)}
            dcp_save(tensors, storage_writer=writer, planner=LocalSavePlanner(), no_dist=True)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        defects = [cause for cause in causes if not isinstance(cause, OSError | InputError)]
        if defects:
            raise defects[0] from error
        message = f"rank {rank}: {'; '.join(map(str, causes))}"
    states: dict[str, NDArray[np.bool_]] = defaultdict(lambda: np.zeros(len(numbers), bool))
    boxes: dict[int, list[Box]] = {}
    for name, tensor in shard.tensors.items():
        state, parameter = split_name(name)
        states[state][numbers[parameter]] = True
        boxes[numbers[parameter]] = tensor.boxes
    rows = [(number, rank, box) for number, of_parameter in boxes.items() for box in of_parameter]
    return WrittenShard(
        writer.files,
        ChunkTable.of(rows, _max_dimensions(shard.shapes)),
        {state: np.packbits(held) for state, held in states.items()},
        writer.started,
        message,
    )


def commit(
    location: CheckpointLocation,
    step: int,
    optimizer_step: int,
    metadata: Mapping[str, Any],
    attempt: str,
    shards: Sequence[WrittenShard],
    shapes: Mapping[str, tuple[int, ...]],
    average: StoredAverage | None = None,
) -> None:
    """Make the shards of all ranks the checkpoint of its step (rank 0).

    Raises:
        AttemptFailedError: A rank could not write; or the chunks do not make up the network.
        OSError: The storage refused the commit; the older checkpoint of this step, if any, is as it was.
        UncertainCommitError: Whether the storage committed is not known.
    """
    if errors := [shard.error for shard in shards if shard.error]:
        raise AttemptFailedError("; ".join(errors))
    table = ChunkTable.concatenated([shard.table for shard in shards])
    if inconsistency := table.inconsistency(shapes):
        raise AttemptFailedError(f"the ranks wrote an incomplete network: {inconsistency}")
    names = sorted(shapes)
    tensors = {
        f"{state}/{names[number]}": StoredTensor(shapes[names[number]])
        for state, held in _held_by_state(shards, len(names)).items()
        for number in np.flatnonzero(held).tolist()
    }
    blocks = table.blocks()
    stored = StoredFile.of_blocks(blocks)
    files = {name: file for shard in shards for name, file in shard.files.items()}
    files[chunk_table_file(attempt)] = stored
    location.write(step, chunk_table_file(attempt), blocks, stored.bytes)
    manifest = Manifest(step, optimizer_step, metadata, tensors, files, attempt, average)
    location.commit(step, manifest.encode(), attempt)


def _held_by_state(shards: Sequence[WrittenShard], parameters: int) -> dict[str, NDArray[np.bool_]]:
    """By state, of which of so many parameters any rank wrote it."""
    bits: dict[str, NDArray[np.uint8]] = {}
    for shard in shards:
        for state, held in shard.states.items():
            bits[state] = bits[state] | held if state in bits else held
    return {state: np.unpackbits(held, count=parameters).astype(bool) for state, held in bits.items()}


def _max_dimensions(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return max(1, *(len(shape) for shape in shapes.values()))
