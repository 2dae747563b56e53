"""Loads checkpoints: into an engine of any layout, or the bare weights into one process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from data.errors import InputError
from pretrain.checkpoint.boxes import Box, BoxedTensor
from pretrain.checkpoint.fragments import MASTER, Fragment, finish_loading, fragments
from pretrain.checkpoint.manifest import Manifest, damaged
from pretrain.checkpoint.storage import SafetensorsReader, piece_key

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

_LISTED = 5


def load(path: Path, engine: Engine) -> Mapping[str, Any]:
    """Continue from a checkpoint, whatever layout wrote it; every rank calls it.

    Each rank reads only what it holds. The files' checksums are verified first, shared out over the
    ranks.

    Returns:
        The metadata given to `CheckpointWriter.save`.

    Raises:
        InputError: No committed checkpoint there, a damaged file (named), or another network's.
    """
    manifest = Manifest.read(path)
    group: Any = dist.new_group(backend="gloo")
    _verify_together(path, manifest, group)
    held = list(fragments(engine))
    _check_network(path, manifest, engine.module, held)
    flats: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for fragment in held:
        for state, values in fragment.states.items():
            name = f"{state}/{fragment.name}"
            flats[name] = torch.empty(values.shape, dtype=torch.float32)
            wanted[name] = BoxedTensor(fragment.shape, fragment.boxes, flats[name])
    reader = SafetensorsReader(path, manifest)
    dcp_load(wanted, storage_reader=reader, planner=DefaultLoadPlanner(), process_group=group)
    for fragment in held:
        for state, values in fragment.states.items():
            values.copy_(flats[f"{state}/{fragment.name}"])
    finish_loading(engine, manifest.optimizer_step)
    engine.step_count = manifest.step
    return manifest.metadata


def load_weights(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights alone, whole and by their global names, in one process without process groups.

    Raises:
        InputError: No committed checkpoint there, or a damaged file (named).
    """
    manifest = Manifest.read(path)
    if found := damaged(path, manifest.files):
        raise _damage(path, found)
    prefix = f"{MASTER}/"
    stored = {name: tensor for name, tensor in manifest.tensors.items() if name.startswith(prefix)}
    weights = {name: torch.empty(tensor.shape, dtype=dtype) for name, tensor in stored.items()}
    boxes: dict[str, list[tuple[str, Box]]] = defaultdict(list)  # by file: each is opened once
    for name, tensor in stored.items():
        for piece in tensor.pieces:
            boxes[piece.file].append((name, piece.box))
    for file_name, held in boxes.items():
        with safe_open(path / file_name, framework="pt") as file:
            for name, box in held:
                where = tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))
                weights[name][where] = file.get_tensor(piece_key(name, box.offset)).to(dtype)
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


def load_metadata(path: Path) -> Mapping[str, Any]:
    """The metadata given to `CheckpointWriter.save`.

    Raises:
        InputError: No committed checkpoint there.
    """
    return Manifest.read(path).metadata


def _verify_together(path: Path, manifest: Manifest, group: Any) -> None:
    names = sorted(manifest.files)[dist.get_rank() :: dist.get_world_size()]
    mine = damaged(path, {name: manifest.files[name] for name in names})
    everybody: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everybody, mine, group=group)
    if found := [line for part in everybody for line in part]:
        raise _damage(path, found)


def _damage(path: Path, found: list[str]) -> InputError:
    return InputError(f"{path}: damaged: {'; '.join(found[:_LISTED])}; take another checkpoint")


def _check_network(path: Path, manifest: Manifest, module: nn.Module, held: list[Fragment]) -> None:
    """Compare names and shapes, before anything is read."""
    names = {name for name, _ in module.named_parameters()}
    prefix = f"{MASTER}/"
    stored = {name.removeprefix(prefix) for name in manifest.tensors if name.startswith(prefix)}
    wrong = [f"{name} is missing there" for name in sorted(names - stored)]
    wrong += [f"{name} is not in this model" for name in sorted(stored - names)]
    for fragment in held:
        tensor = manifest.tensors.get(f"{prefix}{fragment.name}")
        if tensor is not None and tensor.shape != fragment.shape:
            wrong.append(f"{fragment.name} is {list(tensor.shape)} there, {list(fragment.shape)} here")
    if wrong:
        raise InputError(
            f"{path}: another network: {'; '.join(wrong[:_LISTED])}; give the model.* it was made with"
        )
