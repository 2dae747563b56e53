"""Loads checkpoints into an engine of any layout; bare weights are loaded by `weights.py`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

from data.errors import InputError, StorageError
from data.storage.retries import RETRY_SECONDS
from data.storage.store import Store
from pretrain.checkpoint.boxed_tensor import BoxedTensor
from pretrain.checkpoint.chunks import ChunkTable
from pretrain.checkpoint.compatibility import check_network, check_resume, is_without_head
from pretrain.checkpoint.dcp_storage import SafetensorsReader
from pretrain.checkpoint.fragments import Fragment, finish_loading, fragments, state_names
from pretrain.checkpoint.location import open_checkpoint
from pretrain.checkpoint.manifest import EMA, MASTER, Manifest
from pretrain.checkpoint.messages import all_gather_json, broadcast_bytes, broadcast_json
from pretrain.checkpoint.ready import DamagedCheckpointError, damage_error, read_manifest
from pretrain.checkpoint.verification import find_damage
from pretrain.model.action_head import PREFIX as ACTION_HEAD_PREFIX
from pretrain.model.parameters import Shard, initial_values

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

_LOG = logging.getLogger(__name__)
_MAX_LISTED = 5
_ERRORS = (DamagedCheckpointError, StorageError, InputError)  # of reading, the most special first


def load(url: str | Path, engine: Engine) -> Mapping[str, Any]:
    """Resume from a checkpoint, whatever layout wrote it; every rank calls it.

    Each rank reads only what it holds. Every file that is read is verified: by a rank that reads all of it
    anyway, else by one of the ranks. Where the checkpoint has no average of the weights and the engine has
    one, it starts from the checkpoint's weights; where only the checkpoint has one, it is not read. Rank 0
    logs a line in both cases.

    Args:
        url: The checkpoint's folder or URL.
        engine: Receives weights, moments, the average and the step.

    Returns:
        The metadata given to `CheckpointWriter.save`.

    Raises:
        DamagedCheckpointError: A file is damaged (named); the engine is unchanged.
        StorageError: The storage does not answer; the same on every rank.
        InputError: No committed checkpoint there, weights without moments, or another network's.
    """
    loader = _CollectiveLoader(url)
    manifest = loader.manifest
    check_resume(url, manifest, engine.module.config, state_names(engine))
    states = set(state_names(engine))
    loader.load(engine, states if manifest.average is not None else states - {EMA})
    finish_loading(engine, manifest.optimizer_step)
    if engine.average is not None and manifest.average is not None:
        engine.average.resume(manifest.average.updates)
    else:
        _start_average(loader, engine)
    engine.step_count = manifest.step
    return manifest.metadata


def load_initial_weights(url: str | Path, engine: Engine) -> None:
    """Start a run with a checkpoint's weights, at step 0 and with fresh moments; every rank calls it.

    The weights are the trained ones, not their average; an average of the engine starts from them. The
    checkpoint is one of another run or one that `worldvla convert import` made; each rank reads only
    what it holds, in any layout. An action head that the checkpoint does not have starts from random weights,
    those of the engine's seed.

    Args:
        url: The checkpoint's folder or URL.
        engine: Freshly built; unchanged where an error is raised.

    Raises:
        InputError: No committed checkpoint there, a damaged file (named), or another network's: missing
            and extra parameters, wrong shapes and settings are listed before any weight is read.
    """
    loader = _CollectiveLoader(url)
    loader.load(engine, (MASTER,), may_lack_head=True)
    finish_loading(engine, 0)
    _start_average(loader, engine)
    engine.step_count = 0


def load_metadata(url: str | Path) -> Mapping[str, Any]:
    """Load the metadata given to `CheckpointWriter.save`.

    Raises:
        InputError: No committed checkpoint there.
    """
    return Manifest.read(open_checkpoint(url, RETRY_SECONDS)).metadata


class _CollectiveLoader:
    """A checkpoint that all ranks load: rank 0 reads and checks manifest and chunk table and broadcasts them.

    Raises:
        DamagedCheckpointError: READY, manifest or chunk table are damaged.
        InputError: No committed checkpoint there.
    """

    def __init__(self, url: str | Path) -> None:
        self._store: Store = open_checkpoint(url, RETRY_SECONDS)  # exists: a store that is silent is away
        self._group: Any = dist.new_group(backend="gloo")
        manifest, table, problem = b"", b"", None
        if dist.get_rank() == 0:
            try:
                manifest = read_manifest(self._store)
                parsed = Manifest.parse(self._store.url, manifest)
                table = parsed.read_chunk_table(self._store)
                parsed.chunk_table(self._store.url, table)
            except InputError as error:
                kind = next(number for number, kind in enumerate(_ERRORS) if isinstance(error, kind))
                problem = [kind, str(error)]
        if found := broadcast_json(problem, self._group):
            raise _ERRORS[found[0]](found[1])
        self.url = self._store.url
        self.manifest = Manifest.parse(self._store.url, broadcast_bytes(manifest, self._group))
        self._chunk_table = ChunkTable.decode(self._store.url, broadcast_bytes(table, self._group))

    def load(self, engine: Engine, states: Collection[str], may_lack_head: bool = False) -> None:
        """Copy what this rank holds of `states` into the memory in use, all verified.

        With `may_lack_head` an action head that the checkpoint does not have gets initial values.
        """
        check_network(self._store.url, self.manifest, engine.module.config, may_lack_head)
        buffers: dict[str, Tensor] = {}
        tensors: dict[str, BoxedTensor] = {}
        targets: dict[str, Tensor] = {}
        new_head = is_without_head(self.manifest, engine.module.config)
        new: list[Fragment] = []
        for fragment in fragments(engine):
            if new_head and fragment.name.startswith(ACTION_HEAD_PREFIX):
                new.append(fragment)
                continue
            for state, target in fragment.states.items():
                name = f"{state}/{fragment.name}"
                if state in states:
                    buffers[name] = torch.empty(target.shape, dtype=torch.float32)
                    tensors[name] = BoxedTensor(fragment.shape, fragment.boxes, buffers[name])
                    targets[name] = target
        self._read(tensors)
        engine.prepare_change()
        for name, target in targets.items():
            target.copy_(buffers[name])
        for fragment in new:
            _draw(fragment, engine)

    def _read(self, tensors: Mapping[str, BoxedTensor]) -> None:
        missing = sorted(name for name in tensors if name not in self.manifest.tensors)
        stored = {name: tensor for name, tensor in tensors.items() if name in self.manifest.tensors}
        reader = SafetensorsReader(self._store, self.manifest, self._chunk_table, stored)
        if stored and not missing:
            dcp_load(dict(stored), storage_reader=reader, planner=DefaultLoadPlanner(), no_dist=True)
        if missing_anywhere := self._of_any_rank(missing):
            raise InputError(
                f"{self._store.url}: does not hold {', '.join(missing_anywhere[:_MAX_LISTED])}; resume with "
                "the optimiser that it was saved with, or start a run with checkpointing.start_from"
            )
        self._verify(
            self._files_of_any_rank(reader.touched) - self._files_of_any_rank(reader.verified), reader
        )

    def _verify(self, files: Collection[str], reader: SafetensorsReader) -> None:
        """Share the files that no rank has verified among the ranks; every rank raises any rank's errors."""
        own = sorted(files)[dist.get_rank() :: dist.get_world_size()]
        damage, unanswered = list(reader.errors), list(reader.unanswered)
        try:
            damage += find_damage(self._store, {name: self.manifest.files[name] for name in own})
        except StorageError as error:
            unanswered.append(str(error))
        if lines := self._of_any_rank(unanswered):
            raise StorageError(lines[0])  # nothing is damaged, as far as is known
        if lines := self._of_any_rank(damage):
            raise damage_error(self._store.url, lines)

    def _of_any_rank(self, lines: Collection[str]) -> list[str]:
        """The lines of all ranks, each once, in ascending order; usually there are none."""
        return sorted({line for of_rank in all_gather_json(list(lines), self._group) for line in of_rank})

    def _files_of_any_rank(self, names: Collection[str]) -> set[str]:
        """The files of the checkpoint that any rank names."""
        files = sorted(self.manifest.files)
        named = torch.tensor([name in names for name in files], dtype=torch.uint8)
        dist.all_reduce(named, dist.ReduceOp.MAX, group=self._group)
        return {files[number] for number in named.nonzero().flatten().tolist()}


def _start_average(loader: _CollectiveLoader, engine: Engine) -> None:
    """Start the engine's average, if it has one, from the loaded weights; rank 0 says what becomes of it."""
    url, stored, average = loader.url, loader.manifest.average, engine.average
    line = ""
    if average is not None:
        average.restart()
        line = (
            f"{url}: optim.ema={average.decay} starts an average of the weights from the trained ones there"
        )
    elif stored is not None:
        line = f"{url}: its average of the weights (decay {stored.decay:g}) is not read, with optim.ema=null"
    if line and dist.get_rank() == 0:
        _LOG.info(line)


def _draw(fragment: Fragment, engine: Engine) -> None:
    """Write initial values into this rank's part of a parameter of the action head."""
    master = fragment.states[MASTER]
    start = int(np.ravel_multi_index(fragment.boxes[0].offset, fragment.shape))  # the part is a flat range
    shard, config = Shard(fragment.shape), engine.module.config
    master.copy_(initial_values(fragment.name, shard, config, engine.seed, start, start + master.numel()))
