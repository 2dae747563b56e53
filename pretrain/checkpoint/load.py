"""Loads checkpoints into an engine of any layout; bare weights are loaded by `weights.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from data.errors import InputError
from data.storage.store import Store
from pretrain.checkpoint.boxes import BoxedTensor
from pretrain.checkpoint.fragments import finish_loading, fragments
from pretrain.checkpoint.fragments import states as optimizer_states
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import MASTER, DamagedCheckpointError, Manifest, read_manifest
from pretrain.checkpoint.pieces import PieceTable
from pretrain.checkpoint.storage import SafetensorsReader
from pretrain.checkpoint.verification import damaged
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

_LISTED = 5
_DEFINING = ("swin_norm", "rope_theta", "norm_eps")  # change the function, not the shapes


def load(where: str | Path, engine: Engine) -> Mapping[str, Any]:
    """Continue from a checkpoint, whatever layout wrote it; every rank calls it.

    Each rank reads only what it holds. Every file that is needed is verified: by a rank that wants the most
    of it while it reads it, else by one of the ranks.

    Args:
        where: The checkpoint's folder or URL.
        engine: What goes on from it.

    Returns:
        The metadata given to `CheckpointWriter.save`.

    Raises:
        InputError: No committed checkpoint there, weights without moments, a damaged file (named), or
            another network's.
    """
    loading = _Loading(where)
    manifest = loading.manifest
    if manifest.only_weights:
        raise InputError(
            f"{where}: holds weights without moments, so that no run can go on from it; begin one "
            "with checkpointing.start_from"
        )
    loading.fill(engine, None)
    finish_loading(engine, manifest.optimizer_step)
    engine.step_count = manifest.step
    return manifest.metadata


def load_start(where: str | Path, engine: Engine) -> None:
    """Begin a run with a checkpoint's weights, at step 0 and with fresh moments; every rank calls it.

    The checkpoint is one of another run or one that `worldvla convert import` made; each rank reads only
    what it holds, in any layout.

    Args:
        where: The checkpoint's folder or URL.
        engine: Freshly built; nothing of it is changed where an error is raised.

    Raises:
        InputError: No committed checkpoint there, a damaged file (named), or another network's: missing
            and extra parameters, wrong shapes and settings are listed before any weight is read.
    """
    _Loading(where).fill(engine, (MASTER,))
    finish_loading(engine, 0)
    engine.step_count = 0


def load_metadata(where: str | Path) -> Mapping[str, Any]:
    """The metadata given to `CheckpointWriter.save`.

    Raises:
        InputError: No committed checkpoint there.
    """
    return Manifest.read(open_checkpoint(where)).metadata


class _Loading:
    """A checkpoint that all ranks load: rank 0 reads manifest and table of pieces and shares them.

    Raises:
        InputError: No committed checkpoint there.
    """

    def __init__(self, where: str | Path) -> None:
        self._store: Store = open_checkpoint(where)
        self._group: Any = dist.new_group(backend="gloo")
        content: list[Any] = [b"", b"", None]
        if dist.get_rank() == 0:
            try:
                content[0] = read_manifest(self._store)
                content[1] = Manifest.parse(self._store.url, content[0]).read_pieces(self._store)
            except InputError as error:
                content[2] = str(error)
        dist.broadcast_object_list(content, 0, group=self._group)
        if content[2] is not None:
            raise InputError(content[2])
        self.manifest = Manifest.parse(self._store.url, content[0])
        self._pieces: bytes = content[1]

    def fill(self, engine: Engine, states: Collection[str] | None) -> None:
        """Copy what this rank holds of `states` (None: all) into the optimiser's memory, all verified."""
        check_network(self._store.url, self.manifest, engine.module.config)
        table = self.manifest.table(self._store.url, self._pieces)
        other = {name.partition("/")[0] for name in self.manifest.tensors} - set(optimizer_states(engine))
        if states is None and other:
            raise InputError(
                f"{self._store.url}: holds {', '.join(sorted(other))}, which this optimiser has not; resume "
                "with the optimiser that it was saved with, or begin a run with checkpointing.start_from"
            )
        flats: dict[str, Tensor] = {}
        wanted: dict[str, BoxedTensor] = {}
        targets: dict[str, Tensor] = {}
        for fragment in fragments(engine):
            for state, target in fragment.states.items():
                name = f"{state}/{fragment.name}"
                if states is None or state in states:
                    flats[name] = torch.empty(target.shape, dtype=torch.float32)
                    wanted[name] = BoxedTensor(fragment.shape, fragment.boxes, flats[name])
                    targets[name] = target
        self._read(table, wanted)
        for name, target in targets.items():
            target.copy_(flats[name])

    def _read(self, table: PieceTable, wanted: Mapping[str, BoxedTensor]) -> None:
        missing = sorted(name for name in wanted if name not in self.manifest.tensors)
        there = {name: tensor for name, tensor in wanted.items() if name in self.manifest.tensors}
        reader = SafetensorsReader(self._store, self.manifest, table, there)
        if there and not missing:
            dcp_load(dict(there), storage_reader=reader, planner=DefaultLoadPlanner(), no_dist=True)
        everybody: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, (reader.touched, reader.whole, missing), group=self._group)
        if lacking := sorted({name for _, _, names in everybody for name in names}):
            raise InputError(
                f"{self._store.url}: does not hold {', '.join(lacking[:_LISTED])}; resume with the optimiser "
                "that it was saved with, or begin a run with checkpointing.start_from"
            )
        needed = {name for touched, _, _ in everybody for name in touched}
        self._verify(needed - {name for _, whole, _ in everybody for name in whole}, reader.wrong)

    def _verify(self, files: Collection[str], wrong: Sequence[str]) -> None:
        """Verify files that were read whole by nobody; every rank learns what is wrong with any."""
        mine = sorted(files)[dist.get_rank() :: dist.get_world_size()]
        found = [*wrong, *damaged(self._store, {name: self.manifest.files[name] for name in mine})]
        everybody: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, found, group=self._group)
        if lines := sorted({line for part in everybody for line in part}):
            raise damage(self._store.url, lines)


def damage(where: str, found: list[str]) -> DamagedCheckpointError:
    """The error about damaged files."""
    return DamagedCheckpointError(f"{where}: damaged: {'; '.join(found[:_LISTED])}; take another checkpoint")


def check_network(where: str | Path, manifest: Manifest, config: ModelConfig) -> None:
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
            f"{where}: another network: {'; '.join(wrong[:_LISTED])}{more}; give the model.* it was made with"
        )
