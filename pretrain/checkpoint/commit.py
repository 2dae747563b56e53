"""One attempt to write a checkpoint: every rank writes its shard, then rank 0 commits all of them."""

from __future__ import annotations

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
from pretrain.checkpoint.dcp_storage import LocalSavePlanner, SafetensorsWriter
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.manifest import Manifest, StoredFile, StoredTensor, chunk_table_file
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes


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
        states: By state, the numbers of the parameters (in ascending order of their names) that it wrote.
        started: Files that were started, complete or not.
        error: What the storage said; empty: all is written.
    """

    files: Mapping[str, StoredFile]
    table: ChunkTable
    states: Mapping[str, NDArray[np.int64]]
    started: list[str] = field(default_factory=list)
    error: str = ""


def write_shard(
    location: CheckpointLocation, step: int, rank: int, attempt: str, shard: Shard
) -> WrittenShard:
    """Write a rank's files; an error of the storage is in the result."""
    numbers = {name: number for number, name in enumerate(sorted(shard.shapes))}
    writer = SafetensorsWriter(location, step, rank, attempt)
    message = ""
    try:
        if shard.tensors:
            dcp_save(dict(shard.tensors), storage_writer=writer, planner=LocalSavePlanner(), no_dist=True)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        defects = [cause for cause in causes if not isinstance(cause, OSError | InputError)]
        if defects:
            raise defects[0] from error
        message = f"rank {rank}: {'; '.join(map(str, causes))}"
    states: dict[str, list[int]] = defaultdict(list)
    boxes: dict[int, list[Box]] = {}
    for name, tensor in shard.tensors.items():
        state, parameter = split_name(name)
        states[state].append(numbers[parameter])
        boxes[numbers[parameter]] = tensor.boxes
    rows = [(number, rank, box) for number, of_parameter in boxes.items() for box in of_parameter]
    return WrittenShard(
        writer.files,
        ChunkTable.of(rows, _max_dimensions(shard.shapes)),
        {state: np.array(parameters, np.int64) for state, parameters in states.items()},
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
        for state, numbers in _parameters_by_state(shards).items()
        for number in numbers.tolist()
    }
    content = table.encode()
    files = {name: file for shard in shards for name, file in shard.files.items()}
    files[chunk_table_file(attempt)] = StoredFile.of(content)
    location.write(step, chunk_table_file(attempt), [content], len(content))
    manifest = Manifest(step, optimizer_step, metadata, tensors, files, attempt)
    location.commit(step, manifest.encode(), attempt)


def _parameters_by_state(shards: Sequence[WrittenShard]) -> dict[str, NDArray[np.int64]]:
    """By state, the numbers of the parameters of which any rank wrote it."""
    numbers: dict[str, list[NDArray[np.int64]]] = defaultdict(list)
    for shard in shards:
        for state, parameters in shard.states.items():
            numbers[state].append(parameters)
    return {state: np.unique(np.concatenate(arrays)) for state, arrays in numbers.items()}


def _max_dimensions(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return max(1, *(len(shape) for shape in shapes.values()))
