"""What a checkpoint holds: `manifest.json`, checked on reading, and the READY marker.

step_00000100/
  rank_00000-1f2e3d4c.safetensors             the fp32 weights that each rank wrote
  rank_00000.optimizer-1f2e3d4c.safetensors   and its moments
  pieces-1f2e3d4c.safetensors                 which box of which parameter lies where (`pieces.py`)
  manifest-1f2e3d4c.json                      every file's checksum, the tensors' shapes, step and metadata
  READY                                       checksum and name of the manifest; written last

The eight digits are those of the attempt to save: files of two attempts never have the same name, so that
a step can be saved again while its older checkpoint stays whole until READY names the new manifest.
Imported weights have files without digits; so had checkpoints of schema 1, whose manifest holds the pieces.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from data.errors import InputError
from data.storage.store import Store
from pretrain.checkpoint.boxes import Box
from pretrain.checkpoint.pieces import Piece, PieceTable
from pretrain.config import WeightsDtype

MANIFEST = "manifest"
PIECES = "pieces"
READY = "READY"
MASTER = "master"  # the fp32 weights that the optimiser updates
SCHEMA = 2
FLOAT32 = "float32"
DTYPES: tuple[WeightsDtype, ...] = get_args(WeightsDtype)
_READ_SCHEMAS = (1, SCHEMA)
_ATTEMPT = "[0-9a-f]{8}"
_READY = re.compile(rf"([0-9a-f]{{64}})(?: (manifest-{_ATTEMPT}\.json))?")
_FILE = re.compile(rf"(rank_\d{{5,}}(\.optimizer)?|{PIECES})(-{_ATTEMPT})?\.safetensors")
_WRITER = re.compile(r"rank_(\d{5,})\.safetensors")


class DamagedCheckpointError(InputError):
    """Files of a committed checkpoint are missing, cut short or changed."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint: its length and checksum."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: its global shape and what it is stored as.

    Attributes:
        shape: Of the whole tensor.
        dtype: Of `DTYPES`: imported weights stay what they were published as, a training writes float32.
    """

    shape: tuple[int, ...]
    dtype: str = FLOAT32


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of `manifest.json`.

    Attributes:
        step: Optimiser steps done.
        optimizer_step: AdamW's own count, for its bias correction; 0 of an optimiser that does not count.
        metadata: What the trainer wants back: settings, data set, tokens seen.
        tensors: `master/<parameter>`, `exp_avg/<parameter>`, and of AdamW `exp_avg_sq/<parameter>`.
        files: The files, all but the manifest itself.
        attempt: Digits in the files' names; empty: none.
        inline: Pieces that the manifest itself holds (schema 1); None: they are a file.
    """

    step: int
    optimizer_step: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    files: Mapping[str, StoredFile]
    attempt: str = ""
    inline: PieceTable | None = None

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

    @property
    def bytes(self) -> int:
        """Length of all files but the manifest."""
        return sum(file.bytes for file in self.files.values())

    @property
    def parameters(self) -> dict[str, int]:
        """Number of every parameter in the table of pieces."""
        return {name: number for number, name in enumerate(sorted(self.weights))}

    def file_of(self, writer: int, state: str) -> str:
        """Name of the file in which a rank wrote its pieces of a state."""
        own = state_file(writer, state, self.attempt)
        return own if own in self.files else state_file(writer, MASTER, self.attempt)

    def encode(self) -> bytes:
        """As JSON."""
        content = {
            "schema": SCHEMA,
            "step": self.step,
            "optimizer_step": self.optimizer_step,
            "attempt": self.attempt,
            "metadata": self.metadata,
            "files": {name: asdict(file) for name, file in sorted(self.files.items())},
            "tensors": {name: asdict(tensor) for name, tensor in sorted(self.tensors.items())},
        }
        return json.dumps(content).encode()

    def write(self, folder: Path) -> None:
        """Write the manifest, then `READY`, both on the disk when this returns."""
        text = self.encode()
        write_durably(folder / manifest_file(self.attempt), text)
        write_durably(folder / READY, ready_content(text, self.attempt))

    @classmethod
    def read(cls, store: Store) -> Manifest:
        """Read and check the manifest of the checkpoint in `store`.

        Raises:
            InputError: No committed checkpoint there, or its manifest was changed.
        """
        return cls.parse(f"{store.url}/{MANIFEST}", read_manifest(store))

    @classmethod
    def parse(cls, where: str, content: bytes) -> Manifest:
        """Check the content of a manifest.

        Raises:
            InputError: It is none, or names files that are not a checkpoint's.
        """
        try:
            values = json.loads(content)
            if values["schema"] not in _READ_SCHEMAS:
                raise InputError(
                    f"{where}: schema {values['schema']}, this program reads "
                    f"{' and '.join(map(str, _READ_SCHEMAS))}; take the program that wrote it"
                )
            files = {
                name: StoredFile(int(f["bytes"]), str(f["sha256"])) for name, f in values["files"].items()
            }
            tensors = {
                name: _tensor(tensor["shape"], tensor.get("dtype", FLOAT32))
                for name, tensor in values["tensors"].items()
            }
            inline = _inline(tensors, values["tensors"]) if values["schema"] == 1 else None
            metadata, attempt = dict(values["metadata"]), str(values.get("attempt", ""))
            step, count = int(values["step"]), int(values["optimizer_step"])
            manifest = cls(step, count, metadata, tensors, files, attempt, inline)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise InputError(f"{where}: not a checkpoint's manifest ({error!r})") from error
        if not re.fullmatch(f"({_ATTEMPT})?", attempt):
            raise InputError(f"{where}: not a checkpoint's manifest (attempt {attempt!r})")
        if strange := [name for name in files if not _FILE.fullmatch(name)]:
            raise InputError(f"{where}: names the file {strange[0]!r}, expected only its own rank files")
        return manifest

    def read_pieces(self, store: Store) -> bytes:
        """The file with the table of pieces, verified; empty where the manifest holds them.

        Raises:
            InputError: It is missing or damaged.
        """
        if self.inline is not None:
            return b""
        name = pieces_file(self.attempt)
        content = store.read(name)
        if name not in self.files or hashlib.sha256(content).hexdigest() != self.files[name].sha256:
            raise InputError(
                f"{store.url}: damaged: {name} differs from its checksum; take another checkpoint"
            )
        return content

    def table(self, where: str, pieces: bytes) -> PieceTable:
        """The table of pieces, of which every writer has a file and every parameter is made up.

        Args:
            where: For messages.
            pieces: From `read_pieces`.

        Raises:
            InputError: It does not fit the manifest.
        """
        table = self.inline if self.inline is not None else PieceTable.decode(where, pieces)
        problem = table.problem({name: tensor.shape for name, tensor in self.weights.items()})
        for writer in sorted(set(table.writer.tolist())):
            if problem is None and self.file_of(writer, MASTER) not in self.files:
                problem = (
                    f"it names {state_file(writer, MASTER, self.attempt)}, expected only its own rank files"
                )
        if problem is not None:
            raise InputError(f"{where}: its table of pieces is wrong ({problem}); take another checkpoint")
        return table

    def pieces(self, table: PieceTable, parameter: str, boxes: list[Box] | None = None) -> list[Piece]:
        """The pieces of a parameter that have something of any of the boxes (None: all)."""
        dimensions = len(self.tensors[f"{MASTER}/{parameter}"].shape)
        return table.pieces(self.parameters[parameter], dimensions, boxes)


def read_manifest(store: Store) -> bytes:
    """The manifest that READY names, verified.

    Raises:
        InputError: No committed checkpoint there, or its manifest was changed.
    """
    if not store.exists(READY):
        way = "name a folder step_... below a run's checkpoints/, or what convert import made"
        if store.exists("config.json"):
            way = f"Hugging Face weights come in by: worldvla convert import source={store.url} out=..."
        raise InputError(f"{store.url}: no committed checkpoint (no {READY} there); {way}")
    match = _READY.fullmatch(store.read(READY).decode("utf-8", "replace").strip())
    name = (match.group(2) if match else None) or manifest_file("")
    content = store.read(name)
    if match is None or hashlib.sha256(content).hexdigest() != match.group(1):
        raise InputError(
            f"{store.url}/{name}: checksum differs from the one in {READY}; take another checkpoint"
        )
    return content


def _tensor(shape: list[int], dtype: str) -> StoredTensor:
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    return StoredTensor(tuple(map(int, shape)), dtype)


def _inline(tensors: Mapping[str, StoredTensor], values: Mapping[str, Any]) -> PieceTable:
    """The pieces of a manifest of schema 1, which lists them tensor by tensor."""
    names = sorted(name for name in tensors if name.startswith(f"{MASTER}/"))
    rows: list[tuple[int, int, Box]] = []
    for number, name in enumerate(names):
        for file, offset, shape in values[name]["pieces"]:
            match = _WRITER.fullmatch(file)
            if match is None:
                raise InputError(f"names the file {file!r}, expected only its own rank files")
            rows.append((number, int(match.group(1)), Box(tuple(map(int, offset)), tuple(map(int, shape)))))
    return PieceTable.of(rows, max((len(tensors[name].shape) for name in names), default=1) or 1)


def ready_content(manifest: bytes, attempt: str) -> bytes:
    """What READY holds: the manifest's checksum, and its name unless that is `manifest.json`."""
    name = f" {manifest_file(attempt)}" if attempt else ""
    return f"{hashlib.sha256(manifest).hexdigest()}{name}".encode()


def manifest_file(attempt: str) -> str:
    """Name of an attempt's manifest."""
    return f"{MANIFEST}-{attempt}.json" if attempt else f"{MANIFEST}.json"


def pieces_file(attempt: str = "") -> str:
    """Name of an attempt's table of pieces."""
    return f"{PIECES}{f'-{attempt}' if attempt else ''}.safetensors"


def state_file(writer: int, state: str, attempt: str = "") -> str:
    """Name of the file for a rank's pieces of a state: weights and moments lie apart."""
    kind = "" if state == MASTER else ".optimizer"
    return f"rank_{writer:05d}{kind}{f'-{attempt}' if attempt else ''}.safetensors"


def write_durably(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
