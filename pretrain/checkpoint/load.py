"""Loads checkpoints: into an engine of any layout, or the bare weights into one process."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from data.errors import InputError
from pretrain.checkpoint.boxes import Box, BoxedTensor
from pretrain.checkpoint.fragments import STATES, finish_loading, fragments
from pretrain.checkpoint.manifest import MASTER, Manifest, damaged
from pretrain.checkpoint.storage import SafetensorsReader, piece_key
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

_LISTED = 5
_DEFINING = ("swin_norm", "rope_theta", "norm_eps")  # change the function, not the shapes


def load(path: Path, engine: Engine) -> Mapping[str, Any]:
    """Continue from a checkpoint, whatever layout wrote it; every rank calls it.

    Each rank reads only what it holds. The files' checksums are verified first, shared out over the
    ranks.

    Returns:
        The metadata given to `CheckpointWriter.save`.

    Raises:
        InputError: No committed checkpoint there, weights without moments, a damaged file (named), or
            another network's.
    """
    manifest = Manifest.read(path)
    if manifest.only_weights:
        raise InputError(
            f"{path}: holds weights without AdamW's moments, so that no run can go on from it; begin one "
            "with checkpointing.start_from"
        )
    _fill(path, manifest, engine, STATES)
    finish_loading(engine, manifest.optimizer_step)
    engine.step_count = manifest.step
    return manifest.metadata


def load_start(path: Path, engine: Engine) -> None:
    """Begin a run with a checkpoint's weights, at step 0 and with fresh moments; every rank calls it.

    The checkpoint is one of another run or one that `worldvla convert import` made; each rank reads only
    what it holds, in any layout.

    Args:
        path: The checkpoint's folder.
        engine: Freshly built; nothing of it is changed where an error is raised.

    Raises:
        InputError: No committed checkpoint there, a damaged file (named), or another network's: missing
            and extra parameters, wrong shapes and settings are listed before any weight is read.
    """
    _fill(path, Manifest.read(path), engine, (MASTER,))
    finish_loading(engine, 0)
    engine.step_count = 0


def _fill(path: Path, manifest: Manifest, engine: Engine, states: Sequence[str]) -> None:
    """Check the checkpoint, then copy what this rank holds of `states` into the optimiser's memory."""
    check_network(path, manifest, engine.module.config)
    group: Any = dist.new_group(backend="gloo")
    _verify_together(path, manifest, group)
    held = list(fragments(engine))
    flats: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for fragment in held:
        for state in states:
            name = f"{state}/{fragment.name}"
            flats[name] = torch.empty(fragment.states[state].shape, dtype=torch.float32)
            wanted[name] = BoxedTensor(fragment.shape, fragment.boxes, flats[name])
    reader = SafetensorsReader(path, manifest)
    dcp_load(wanted, storage_reader=reader, planner=DefaultLoadPlanner(), process_group=group)
    for fragment in held:
        for state in states:
            fragment.states[state].copy_(flats[f"{state}/{fragment.name}"])


def load_weights(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The weights alone, whole and by their global names, in one process without process groups.

    Raises:
        InputError: No committed checkpoint there, or a damaged file (named).
    """
    manifest = Manifest.read(path)
    if found := damaged(path, manifest.files):
        raise _damage(path, found)
    weights = {name: torch.empty(tensor.shape, dtype=dtype) for name, tensor in manifest.weights.items()}
    boxes: dict[str, list[tuple[str, Box]]] = defaultdict(list)  # by file: each is opened once
    for name, tensor in manifest.weights.items():
        for piece in tensor.pieces:
            boxes[piece.file].append((name, piece.box))
    for file_name, held in boxes.items():
        with safe_open(path / file_name, framework="pt") as file:
            for name, box in held:
                where = tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))
                key = piece_key(f"{MASTER}/{name}", box.offset)
                weights[name][where] = file.get_tensor(key)  # copying converts
    return weights


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


def check_network(path: Path, manifest: Manifest, config: ModelConfig) -> None:
    """Compare names, shapes and what the numbers depend on besides; no weight is read.

    Raises:
        InputError: The checkpoint is of another network: missing and extra parameters, wrong shapes and
            settings are listed.
    """
    stored, here = manifest.weights, expected_shapes(config)
    wrong = [f"{name} is missing there" for name in sorted(here.keys() - stored.keys())]
    wrong += [f"{name} is not in this model" for name in sorted(stored.keys() - here.keys())]
    wrong += [
        f"{name} is {list(stored[name].shape)} there, {list(shape)} here"
        for name, shape in here.items()
        if name in stored and stored[name].shape != shape
    ]
    made_with = manifest.metadata.get("config", {}).get("model", {})
    wrong += [
        f"model.{name} is {made_with[name]} there, {value} here"
        for name, value in ((name, getattr(config, name)) for name in _DEFINING)
        if name in made_with and made_with[name] != value
    ]
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise InputError(
            f"{path}: another network: {'; '.join(wrong[:_LISTED])}{more}; give the model.* it was made with"
        )
