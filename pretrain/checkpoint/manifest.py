"""What a checkpoint holds: the manifest, checked on reading, and the READY marker.

step_00000100/
  rank_00000-1f2e3d4c.safetensors             the fp32 weights that each rank wrote
  rank_00000.optimizer-1f2e3d4c.safetensors   and its moments
  pieces-1f2e3d4c.safetensors                 the chunk table
  manifest-1f2e3d4c.json                      every file's checksum, the tensors' shapes, step and metadata
  READY                                       checksum and name of the manifest; written last

The eight digits are the attempt's id: files of two attempts never have the same name, so that a step can be
saved again while its older checkpoint stays whole until READY names the new manifest. The files of imported
weights have no id.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from data.errors import InputError
from data.files import write_whole
from data.storage.bulk_store import Block
from data.storage.store import Store
from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.chunks import MAX_DIMENSIONS, Chunk, ChunkTable
from pretrain.checkpoint.ready import (
    ATTEMPT,
    DamagedCheckpointError,
    damage_error,
    manifest_file,
    read_manifest,
    ready_content,
)
from pretrain.config import WeightsDtype
from pretrain.run_layout import READY

MASTER = "master"  # the fp32 weights that the optimiser updates
EMA = "ema"  # and their exponential moving average
FLOAT32 = "float32"
DTYPES: tuple[WeightsDtype, ...] = get_args(WeightsDtype)
_CHUNK_TABLE = "pieces"
_SCHEMA = 2
_FILE = re.compile(rf"(rank_\d{{5,}}(\.optimizer|\.{EMA})?|{_CHUNK_TABLE})(-{ATTEMPT})?\.safetensors")
_HASH_BLOCK = 1 << 22
_MAX_COUNT = 1 << 53  # beyond it not every JSON reader keeps whole numbers
_NOT_A_MANIFEST = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
)
_MAX_VALUES = (1 << 63) - 1  # of a tensor: positions in it are int64


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint: its length and checksum."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> StoredFile:
        """Describe a file by its content."""
        return cls.of_blocks([content])

    @classmethod
    def of_blocks(cls, blocks: Iterable[Block]) -> StoredFile:
        """Describe a file by its content, block by block."""
        digest, count = hashlib.sha256(), 0
        for block in blocks:
            digest.update(block)
            count += len(block)
        return cls(count, digest.hexdigest())

    @classmethod
    def of_path(cls, path: Path) -> StoredFile:
        """Describe a file on the disk."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK):
                digest.update(block)
        return cls(path.stat().st_size, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: its global shape and the dtype that it is stored as.

    Attributes:
        shape: Of the whole tensor.
        dtype: Of `DTYPES`: imported weights keep the dtype they were published in, training writes float32.
    """

    shape: tuple[int, ...]
    dtype: str = FLOAT32


@dataclass(frozen=True, slots=True)
class StoredAverage:
    """The average of the weights, beside its tensors.

    Attributes:
        decay: Last `optim.ema` of the training.
        updates: Updates that it has followed.
    """

    decay: float
    updates: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a manifest.

    Attributes:
        step: Optimiser steps done.
        optimizer_step: AdamW's own count, for its bias correction; 0 for an optimiser that does not count.
        metadata: The trainer's own: settings, data set, tokens seen.
        tensors: `master/<parameter>`, `exp_avg/<parameter>`, for AdamW `exp_avg_sq/<parameter>`, and with an
            average `ema/<parameter>`.
        files: The files, all but the manifest itself.
        attempt: Id in the files' names; empty: none.
        average: Of the weights; None: there is none.
    """

    step: int
    optimizer_step: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, StoredFile]
    attempt: str = ""
    average: StoredAverage | None = None

    @property
    def weights(self) -> dict[str, StoredTensor]:
        """The weights by parameter name."""
        prefix = f"{MASTER}/"
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    @property
    def only_weights(self) -> bool:
        """Whether there are weights without moments, from which no run can resume."""
        return all(name.startswith(f"{MASTER}/") for name in self.tensors)

    @property
    def bytes(self) -> int:
        """Length of all files but the manifest."""
        return sum(file.bytes for file in self.files.values())

    @property
    def parameter_numbers(self) -> dict[str, int]:
        """Number of every parameter in the chunk table."""
        return {name: number for number, name in enumerate(sorted(self.weights))}

    def file_of(self, writer: int, state: str) -> str:
        """Name of the file in which a rank wrote its chunks of a state."""
        return state_file(writer, state, self.attempt)

    def files_of(self, *states: str) -> dict[str, StoredFile]:
        """The chunk table and the files with any of these states."""
        kinds = {_kind(state) for state in states}
        found: dict[str, StoredFile] = {}
        for name, file in self.files.items():
            match = _FILE.fullmatch(name)
            if name.startswith(_CHUNK_TABLE) or (match is not None and (match[2] or "") in kinds):
                found[name] = file
        return found

    def encode(self) -> bytes:
        """Encode as JSON."""
        content = {
            "schema": _SCHEMA,
            "step": self.step,
            "optimizer_step": self.optimizer_step,
            "attempt": self.attempt,
            "metadata": self.metadata,
            "files": {
                name: {"bytes": file.bytes, "sha256": file.sha256}
                for name, file in sorted(self.files.items())
            },
            "tensors": {
                name: {"shape": tensor.shape, "dtype": tensor.dtype}
                for name, tensor in sorted(self.tensors.items())
            },
        }
        if self.average is not None:
            content[EMA] = {"decay": self.average.decay, "updates": self.average.updates}
        return json.dumps(content).encode()

    def write(self, folder: Path) -> None:
        """Write the manifest, then `READY`, both on the disk when this returns."""
        text = self.encode()
        write_whole(folder / manifest_file(self.attempt), text)
        write_whole(folder / READY, ready_content(text, self.attempt))

    @classmethod
    def read(cls, store: Store) -> Manifest:
        """Read and check the manifest of the checkpoint in `store`.

        Raises:
            DamagedCheckpointError: READY or the manifest is missing, cut short or changed.
            InputError: No committed checkpoint there, or one that another version wrote.
        """
        return cls.parse(f"{store.url}/manifest", read_manifest(store))

    @classmethod
    def parse(cls, where: str, content: bytes) -> Manifest:
        """Parse and check the content of a manifest; `where` leads the messages.

        Raises:
            DamagedCheckpointError: It is not a manifest, or names files that are not a checkpoint's.
            InputError: Another version wrote it.
        """
        try:
            values = json.loads(content)
            if values["schema"] != _SCHEMA:
                raise InputError(
                    f"{where}: schema {values['schema']!r:.40}, this program reads {_SCHEMA}; take the "
                    "program that wrote it"
                )
            files = {
                name: StoredFile(_count("bytes", f["bytes"]), str(f["sha256"]))
                for name, f in values["files"].items()
            }
            tensors = {
                name: _tensor(tensor["shape"], tensor.get("dtype", FLOAT32))
                for name, tensor in values["tensors"].items()
            }
            metadata, attempt = dict(values["metadata"]), str(values.get("attempt", ""))
            step, count = (_count(name, values[name]) for name in ("step", "optimizer_step"))
            average = _average(values[EMA], tensors) if EMA in values else None
            manifest = cls(step, count, metadata, tensors, files, attempt, average)
        except _NOT_A_MANIFEST as error:
            raise DamagedCheckpointError(f"{where}: not a checkpoint's manifest ({error!r})") from error
        if not re.fullmatch(f"({ATTEMPT})?", attempt):
            raise DamagedCheckpointError(f"{where}: not a checkpoint's manifest (attempt {attempt!r})")
        if unexpected := [name for name in files if not _FILE.fullmatch(name)]:
            raise DamagedCheckpointError(
                f"{where}: names the file {unexpected[0]!r}, expected only its own rank files"
            )
        return manifest

    def read_chunk_table(self, store: Store) -> bytes:
        """Read and verify the file of the chunk table.

        Raises:
            DamagedCheckpointError: It is missing or damaged.
        """
        name = chunk_table_file(self.attempt)
        if not store.exists(name):
            raise damage_error(store.url, [f"{name} is missing"])
        content = store.read(name)
        if name not in self.files or hashlib.sha256(content).hexdigest() != self.files[name].sha256:
            raise damage_error(store.url, [f"{name} differs from its checksum"])
        return content

    def chunk_table(self, where: str, content: bytes) -> ChunkTable:
        """Decode the chunk table and check that every writer has its files and every parameter is complete.

        Args:
            where: For messages.
            content: From `read_chunk_table`.

        Raises:
            DamagedCheckpointError: It does not fit the manifest.
        """
        try:
            table = ChunkTable.decode(where, content)
        except InputError as error:
            raise DamagedCheckpointError(str(error)) from error
        if (error := self.table_inconsistency(table)) is not None:
            raise DamagedCheckpointError(
                f"{where}: its table of chunks is wrong ({error}); take another checkpoint"
            )
        return table

    def table_inconsistency(self, table: ChunkTable) -> str | None:
        """Describe why a chunk table does not fit this manifest; None: it does."""
        error = table.inconsistency({name: tensor.shape for name, tensor in self.weights.items()})
        if error is not None:
            return error
        states = {name.partition("/")[0] for name in self.tensors}
        for writer in np.unique(table.writer).tolist():
            for file in sorted({self.file_of(writer, state) for state in states}):
                if file not in self.files:
                    return f"it names {file}, expected only its own rank files"
        return None

    def chunks(self, table: ChunkTable, parameter: str, boxes: list[Box] | None = None) -> list[Chunk]:
        """List the chunks of a parameter that overlap any of the boxes (None: all)."""
        dimensions = len(self.tensors[f"{MASTER}/{parameter}"].shape)
        return table.chunks(self.parameter_numbers[parameter], dimensions, boxes)


def _tensor(shape: list[int], dtype: str) -> StoredTensor:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"a shape of {len(shape)} dimensions, expected at most {MAX_DIMENSIONS}")
    sides = tuple(_count("a side of a shape", side) for side in shape)
    if math.prod(max(side, 1) for side in sides) > _MAX_VALUES:
        raise ValueError(f"shape {list(sides)}, expected at most {_MAX_VALUES} values")
    return StoredTensor(sides, dtype)


def _average(values: Any, tensors: Mapping[str, StoredTensor]) -> StoredAverage:
    decay, updates = float(values["decay"]), _count("updates of the average", values["updates"])
    if not 0 < decay < 1:
        raise ValueError(f"decay {decay} of the average, expected above 0 and below 1")
    for name, tensor in tensors.items():
        state, _, parameter = name.partition("/")
        if state == MASTER and tensors.get(f"{EMA}/{parameter}") != tensor:
            raise ValueError(f"no average of {parameter}, expected one of every weight")
    return StoredAverage(decay, updates)


def _count(name: str, value: Any) -> int:
    """A whole number of a manifest; `ValueError` and `OverflowError`: it cannot be one."""
    count = int(value)
    if not 0 <= count <= _MAX_COUNT:
        raise ValueError(f"{name} is {count!s:.40}, expected 0 to {_MAX_COUNT}")
    return count


def chunk_table_file(attempt: str = "") -> str:
    """Name of an attempt's chunk table."""
    return f"{_CHUNK_TABLE}{f'-{attempt}' if attempt else ''}.safetensors"


def state_file(writer: int, state: str, attempt: str = "") -> str:
    """Name of the file for a rank's chunks of a state: weights, their average, moments have a file each."""
    return f"rank_{writer:05d}{_kind(state)}{f'-{attempt}' if attempt else ''}.safetensors"


def _kind(state: str) -> str:
    return {MASTER: "", EMA: f".{EMA}"}.get(state, ".optimizer")
