"""What a checkpoint folder holds: `manifest.json`, checked on reading, and the READY marker.

step_00000100/
  rank_00000.safetensors ...   the pieces that each rank wrote
  manifest.json                every tensor's pieces, every file's checksum, step and metadata
  READY                        checksum of the manifest; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.errors import InputError
from pretrain.checkpoint.boxes import Box

MANIFEST = "manifest.json"
READY = "READY"
MASTER = "master"  # the fp32 weights that AdamW updates
SCHEMA = 1
FLOAT32 = "float32"
DTYPES = (FLOAT32, "bfloat16", "float16")
_STEP_FOLDER = re.compile(r"step_(\d{8,})")
_RANK_FILE = re.compile(r"rank_\d{5,}\.safetensors")
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint: its length and checksum."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One box of a tensor and the file that holds it."""

    file: str
    box: Box


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: its global shape, its pieces and what they are stored as.

    Attributes:
        shape: Of the whole tensor.
        pieces: Boxes that cover it.
        dtype: Of `DTYPES`: imported weights stay what they were published as, a training writes float32.
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    dtype: str = FLOAT32


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        step: Optimiser steps done.
        optimizer_step: AdamW's own count, for its bias correction.
        metadata: What the trainer wants back: settings, data set, tokens seen.
        tensors: `master/<parameter>`, `exp_avg/<parameter>`, `exp_avg_sq/<parameter>`.
        files: The rank files.
    """

    step: int
    optimizer_step: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, StoredFile]

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
        """Whether there are weights without moments, from which no run can be resumed."""
        return all(name.startswith(f"{MASTER}/") for name in self.tensors)

    def write(self, folder: Path) -> None:
        """Write `manifest.json`, then `READY`, both on the disk when this returns."""
        content = {
            "schema": SCHEMA,
            "step": self.step,
            "optimizer_step": self.optimizer_step,
            "metadata": self.metadata,
            "files": {name: asdict(file) for name, file in sorted(self.files.items())},
            "tensors": {
                name: {
                    "shape": tensor.shape,
                    "dtype": tensor.dtype,
                    "pieces": [(piece.file, piece.box.offset, piece.box.shape) for piece in tensor.pieces],
                }
                for name, tensor in sorted(self.tensors.items())
            },
        }
        text = json.dumps(content).encode()
        write_durably(folder / MANIFEST, text)
        write_durably(folder / READY, hashlib.sha256(text).hexdigest().encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check a manifest.

        Raises:
            InputError: No committed checkpoint there, or its manifest was changed.
        """
        if not (folder / READY).is_file():
            way = "name a folder step_... below a run's checkpoints/, or what convert import made"
            if (folder / "config.json").is_file():
                way = f"Hugging Face weights come in by: worldvla convert import source={folder} out=..."
            raise InputError(f"{folder}: no committed checkpoint (no {READY} there); {way}")
        path = folder / MANIFEST
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); take another checkpoint") from error
        if hashlib.sha256(content).hexdigest().encode() != (folder / READY).read_bytes().strip():
            raise InputError(f"{path}: checksum differs from the one in {READY}; take another checkpoint")
        return cls._parse(path, content)

    @classmethod
    def _parse(cls, path: Path, content: bytes) -> Manifest:
        try:
            values = json.loads(content)
            if values["schema"] != SCHEMA:
                raise InputError(f"{path}: schema {values['schema']}, this program reads {SCHEMA}")
            files = {
                name: StoredFile(int(f["bytes"]), str(f["sha256"])) for name, f in values["files"].items()
            }
            tensors = {name: _tensor(**tensor) for name, tensor in values["tensors"].items()}
            metadata = dict(values["metadata"])
            manifest = cls(values["step"], values["optimizer_step"], metadata, tensors, files)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}: not a checkpoint's manifest ({error!r})") from error
        for name in {*files, *(piece.file for tensor in tensors.values() for piece in tensor.pieces)}:
            if not _RANK_FILE.fullmatch(name) or name not in files:
                raise InputError(f"{path}: names the file {name!r}, expected only its own rank files")
        return manifest


def _tensor(shape: list[int], pieces: list[Any], dtype: str = FLOAT32) -> StoredTensor:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    return StoredTensor(tuple(map(int, shape)), tuple(_piece(*piece) for piece in pieces), dtype)


def _piece(file: str, offset: list[int], shape: list[int]) -> Piece:
    return Piece(file, Box(tuple(map(int, offset)), tuple(map(int, shape))))


def step_folder(root: Path, step: int) -> Path:
    """`<root>/step_00000100`."""
    return root / f"step_{step:08d}"


def rank_file(rank: int) -> str:
    """Name of the file that a rank writes: `rank_00003.safetensors`."""
    return f"rank_{rank:05d}.safetensors"


def committed(root: Path) -> list[Path]:
    """Committed checkpoints below `root`, the oldest first."""
    if not root.is_dir():
        return []
    found = ((_STEP_FOLDER.fullmatch(path.name), path) for path in root.iterdir())
    steps = [(int(match.group(1)), path) for match, path in found if match and (path / READY).is_file()]
    return [path for _, path in sorted(steps)]


def latest(root: Path) -> Path | None:
    """The newest committed checkpoint below `root`, or None."""
    return next(iter(reversed(committed(root))), None)


def describe_file(path: Path) -> StoredFile:
    """Length and checksum of a file as it lies on the disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return StoredFile(path.stat().st_size, digest.hexdigest())


def damaged(folder: Path, files: Mapping[str, StoredFile]) -> list[str]:
    """What is wrong with each of `files`, one line a file; empty when all are as they were written."""
    found: list[str] = []
    for name, expected in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != expected.bytes:
            found.append(f"{name} has {path.stat().st_size} bytes, expected {expected.bytes}")
        elif describe_file(path).sha256 != expected.sha256:
            found.append(f"{name} differs from its checksum")
    return found


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
