"""One attempt to write a checkpoint: a rank's own files, and the commit of all ranks' files."""

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
from pretrain.checkpoint.boxes import Box, BoxedTensor
from pretrain.checkpoint.location import CheckpointPlace
from pretrain.checkpoint.manifest import Manifest, StoredFile, StoredTensor, pieces_file
from pretrain.checkpoint.pieces import PieceTable
from pretrain.checkpoint.storage import OwnSavePlanner, SafetensorsWriter, parameter_of
from pretrain.checkpoint.verification import describe
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes


class RefusedError(Exception):
    """What ranks could not write; the message names them."""


@dataclass(frozen=True)
class Shard:
    """What one rank has to write.

    Attributes:
        tensors: Its boxes of `<state>/<parameter>`, on the host.
        model: The network.
    """

    tensors: Mapping[str, BoxedTensor]
    model: ModelConfig

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Whole shape of every parameter of the network."""
        return expected_shapes(self.model)


@dataclass(frozen=True)
class Written:
    """What one rank has written: some kilobytes, whatever the size of the network.

    Attributes:
        files: Its files.
        table: Its pieces.
        states: Numbers of the parameters (in ascending order of their names) that it has each state of.
        begun: Files of which something may be there.
        problem: What the storage said; empty: all is written.
    """

    files: Mapping[str, StoredFile]
    table: PieceTable
    states: Mapping[str, NDArray[np.int64]]
    begun: list[str] = field(default_factory=list)
    problem: str = ""


def write_shard(place: CheckpointPlace, step: int, rank: int, attempt: str, shard: Shard) -> Written:
    """Write a rank's files; what the storage refuses is in the result."""
    numbers = {name: number for number, name in enumerate(sorted(shard.shapes))}
    writer = SafetensorsWriter(place, step, rank, attempt)
    problem = ""
    try:
        if shard.tensors:
            dcp_save(dict(shard.tensors), storage_writer=writer, planner=OwnSavePlanner(), no_dist=True)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        defects = [cause for cause in causes if not isinstance(cause, OSError | InputError)]
        if defects:
            raise defects[0] from error
        problem = f"rank {rank}: {'; '.join(map(str, causes))}"
    held: dict[str, list[int]] = defaultdict(list)
    boxes: dict[int, list[Box]] = {}
    for name, tensor in shard.tensors.items():
        state, parameter = parameter_of(name)
        held[state].append(numbers[parameter])
        boxes[numbers[parameter]] = tensor.boxes
    rows = [(number, rank, box) for number, found in boxes.items() for box in found]
    states = {state: np.array(found, np.int64) for state, found in held.items()}
    return Written(
        writer.files, PieceTable.of(rows, _dimensions(shard.shapes)), states, writer.begun, problem
    )


def commit(
    place: CheckpointPlace,
    step: int,
    optimizer_step: int,
    metadata: Mapping[str, Any],
    attempt: str,
    parts: Sequence[Written],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Make what all ranks have written the checkpoint of its step (rank 0).

    Raises:
        RefusedError: A rank could not write; or the pieces do not make up the network.
        OSError: The storage refused the commit; the older checkpoint of this step, if any, is as it was.
        UnsureError: Whether it did is not known.
    """
    if problems := [part.problem for part in parts if part.problem]:
        raise RefusedError("; ".join(problems))
    table = PieceTable.joined([part.table for part in parts])
    if problem := table.problem(shapes):
        raise RefusedError(f"the ranks wrote no whole network: {problem}")
    names = sorted(shapes)
    tensors = {
        f"{state}/{names[number]}": StoredTensor(shapes[names[number]])
        for state, numbers in _all_states(parts).items()
        for number in numbers.tolist()
    }
    pieces = table.encode()
    files = {name: file for part in parts for name, file in part.files.items()}
    files[pieces_file(attempt)] = describe(pieces)
    place.write(step, pieces_file(attempt), [pieces], len(pieces))
    manifest = Manifest(step, optimizer_step, metadata, tensors, files, attempt)
    place.commit(step, manifest.encode(), attempt)


def _all_states(parts: Sequence[Written]) -> dict[str, NDArray[np.int64]]:
    """Numbers of the parameters of which any rank has each state: the same ones, told by all of them."""
    found: dict[str, list[NDArray[np.int64]]] = defaultdict(list)
    for part in parts:
        for state, numbers in part.states.items():
            found[state].append(numbers)
    return {state: np.unique(np.concatenate(arrays)) for state, arrays in found.items()}


def _dimensions(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return max(1, *(len(shape) for shape in shapes.values()))
