"""Saves while training goes on: copy to host memory, then write, check and commit in the background."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from data.files import sync_folder
from pretrain.checkpoint.boxes import BoxedTensor
from pretrain.checkpoint.fragments import fragments, optimizer_step
from pretrain.checkpoint.manifest import Manifest, StoredFile, committed, describe_file, step_folder
from pretrain.checkpoint.storage import SafetensorsWriter

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

_TEMPORARY = ".tmp-"


class CheckpointError(RuntimeError):
    """A save failed on some rank; older checkpoints are untouched."""


class CheckpointWriter:
    """Writes checkpoints of one engine below a folder; made and used by all ranks alike.

    A checkpoint appears under its name in one rename, with everything on the disk before. A save that
    was cut short leaves a `.tmp-*` folder, which the next writer removes.

    Args:
        root: The run's `checkpoints/`.
        engine: What is saved.
        keep_last: Committed checkpoints to keep; None keeps all.

    Attributes:
        stall: Seconds for which the last `save` held up the training.
    """

    def __init__(self, root: Path, engine: Engine, keep_last: int | None = None) -> None:
        self._root = root
        self._engine = engine
        self._keep_last = keep_last
        self._group: Any = dist.new_group(backend="gloo")  # the thread's own: training uses others meanwhile
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self._staging: dict[str, Tensor] = {}
        self._stage()  # takes the host memory now, not in the middle of the training
        self.stall = 0.0
        if dist.get_rank() == 0:
            root.mkdir(parents=True, exist_ok=True)
            for torn in root.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(torn)

    def save(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Begin a checkpoint; returns as soon as the state is copied.

        Args:
            step: Optimiser steps done.
            metadata: JSON values to get back from `load`; rank 0's are stored.

        Raises:
            CheckpointError: The save before this one failed.
        """
        self.wait()
        start = time.perf_counter()
        tensors = self._stage()
        count = optimizer_step(self._engine)
        nonce = [uuid.uuid4().hex[:8]]
        dist.broadcast_object_list(nonce, 0, group=self._group)
        folder = self._root / f"{_TEMPORARY}{step_folder(self._root, step).name}-{nonce[0]}"
        empty = Manifest(step, count, dict(metadata), {}, {})
        # True until the thread says otherwise, so that one that dies cannot pass for a success.
        self._failure = CheckpointError(
            f"checkpoint of step {step} was not written: its thread died, see the traceback above"
        )
        self._thread = threading.Thread(
            target=self._run, args=(folder, tensors, empty), name="checkpoint", daemon=True
        )
        self._thread.start()
        self.stall = time.perf_counter() - start

    def wait(self) -> None:
        """Wait until the save that was begun is committed.

        Raises:
            CheckpointError: It failed; the message names the rank and the cause.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _stage(self) -> dict[str, Tensor]:
        """Copy this rank's part to host memory that is kept for the next save."""
        tensors: dict[str, Tensor] = {}
        for fragment in fragments(self._engine):
            if not fragment.written:
                continue
            for state, values in fragment.states.items():
                name = f"{state}/{fragment.name}"
                if name not in self._staging:
                    self._staging[name] = torch.empty(
                        values.shape, dtype=torch.float32, pin_memory=values.is_cuda
                    )
                self._staging[name].copy_(values, non_blocking=True)
                tensors[name] = BoxedTensor(fragment.shape, fragment.boxes, self._staging[name])
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return tensors

    def _run(self, folder: Path, tensors: dict[str, Tensor], empty: Manifest) -> None:
        try:
            self._write(folder, tensors, empty)
            self._failure = None
        except (OSError, RuntimeError, CheckpointException) as error:
            self._failure = CheckpointError(f"checkpoint of step {empty.step} was not written: {error}")
            self._failure.__cause__ = error

    def _write(self, folder: Path, tensors: dict[str, Tensor], empty: Manifest) -> None:
        rank = dist.get_rank()
        self._together(lambda: folder.mkdir() if rank == 0 else None)
        writer = SafetensorsWriter(folder, rank)
        dcp_save(tensors, storage_writer=writer, planner=DefaultSavePlanner(), process_group=self._group)
        described = self._together(lambda: {writer.file.name: describe_file(writer.file)})
        self._together(lambda: self._commit(folder, writer, described, empty) if rank == 0 else None)

    def _commit(
        self, folder: Path, writer: SafetensorsWriter, described: list[dict[str, StoredFile]], empty: Manifest
    ) -> None:
        files = {name: file for part in described for name, file in part.items()}
        Manifest(empty.step, empty.optimizer_step, empty.metadata, writer.tensors, files).write(folder)
        sync_folder(folder)
        final = step_folder(self._root, empty.step)
        if final.exists():  # a run that went back to an older checkpoint comes by again
            shutil.rmtree(_set_aside(final))
        folder.rename(final)
        sync_folder(self._root)
        for old in committed(self._root)[: -self._keep_last] if self._keep_last else []:
            shutil.rmtree(_set_aside(old))

    def _together(self, work: Any) -> list[Any]:
        """Do something on every rank, and raise on all of them where one failed."""
        try:
            mine: tuple[Any, str] = (work(), "")
        except OSError as error:
            mine = (None, f"rank {dist.get_rank()}: {error}")
        everybody: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everybody, mine, group=self._group)
        failures = [failure for _, failure in everybody if failure]
        if failures:
            raise RuntimeError("; ".join(failures))
        return [result for result, _ in everybody]


def _set_aside(folder: Path) -> Path:
    """Take a checkpoint's name away at once, so that nobody finds it half removed."""
    aside = folder.with_name(f"{_TEMPORARY}old-{folder.name}")
    folder.rename(aside)
    return aside
