"""Saves while training goes on: copy to host memory, then write, check and commit in the background."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import InputError
from pretrain.checkpoint.boxed_tensor import BoxedTensor
from pretrain.checkpoint.commit import AttemptFailedError, Shard, WrittenShard, commit, write_shard
from pretrain.checkpoint.fragments import fragments, optimizer_step
from pretrain.checkpoint.location import CheckpointLocation, UncertainCommitError
from pretrain.checkpoint.messages import broadcast_json, gather_bytes
from pretrain.checkpoint.retention import steps_to_remove, success_rates
from pretrain.config import CheckpointingConfig

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

ReportEvent = Callable[..., None]
"""Takes the name of an event and its details; called from the thread that writes, on rank 0."""

_GROUP_TIMEOUT = timedelta(hours=2)  # for a rank whose storage is slow


class CheckpointError(RuntimeError):
    """A save failed on some rank; older checkpoints are untouched."""


@dataclass(frozen=True, slots=True)
class _Save:
    """A save, beside its tensors."""

    step: int
    optimizer_step: int
    metadata: Mapping[str, Any]


class CheckpointWriter:
    """Writes checkpoints of one engine to one location; every rank makes one and calls the same methods.

    A checkpoint is committed when its READY marker is written, with everything durable before. Files of
    interrupted saves are removed when the writer is made. A save that fails is retried in the background;
    only when all attempts have failed do all ranks get the error, at the next call.

    Args:
        location: Of the run's checkpoints; a path or URL serves as well.
        engine: Whose state is saved.
        settings: Attempts, waits between them, and retention.
        evaluations: The run's `eval/`, for `keep_best` and `await_evaluation`.
        report: Called with the events `checkpoint_cleaned`, `checkpoint_failed` and `checkpoint_not_removed`.

    Attributes:
        stall: Seconds for which the last `save` blocked the training.
        committed: Steps of the committed checkpoints, as of the last save (rank 0; empty on others).

    Raises:
        InputError: The location cannot be listed, or files of interrupted saves cannot be removed.
    """

    def __init__(
        self,
        location: CheckpointLocation | Path | str,
        engine: Engine,
        settings: CheckpointingConfig | None = None,
        evaluations: Path | None = None,
        report: ReportEvent | None = None,
    ) -> None:
        self._location = (
            location if isinstance(location, CheckpointLocation) else CheckpointLocation(location)
        )
        self._engine = engine
        self._settings = settings or CheckpointingConfig()
        self._evaluations = evaluations
        self._report = report
        # A group of the thread's own: training uses the others at the same time.
        self._group: Any = dist.new_group(backend="gloo", timeout=_GROUP_TIMEOUT)
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self._staging: dict[str, Tensor] = {}
        self._stage()  # allocates the host memory now, not in the middle of the training
        self.stall = 0.0
        self.committed: list[int] = []
        if error := self._on_first_rank(self._clean)[0]:
            raise InputError(
                f"{self._location.url}: cannot be used for checkpoints ({error}); set checkpointing.url to a "
                "place that you may write to"
            )

    def save(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Start a checkpoint; returns as soon as the state is copied.

        Args:
            step: Optimiser steps done.
            metadata: JSON values that `load` returns; rank 0's are stored.

        Raises:
            CheckpointError: The save before this one failed.
        """
        start = time.perf_counter()
        self.wait()
        shard = self._stage()
        save = _Save(step, optimizer_step(self._engine), dict(metadata))
        # Set until the thread has succeeded, so that a thread that dies cannot pass for a success.
        self._failure = CheckpointError(
            f"checkpoint of step {step} was not written: its thread died, see the traceback above"
        )
        self._thread = threading.Thread(target=self._run, args=(shard, save), name="checkpoint", daemon=True)
        self._thread.start()
        self.stall = time.perf_counter() - start

    def wait(self) -> None:
        """Wait until the running save, if any, is committed.

        Raises:
            CheckpointError: It failed; the message names the rank and the cause.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _stage(self) -> Shard:
        """Copy this rank's shard to host memory, which is reused by the next save."""
        tensors: dict[str, BoxedTensor] = {}
        for fragment in fragments(self._engine):
            if not fragment.is_writer:
                continue
            for state, values in fragment.states.items():
                name = f"{state}/{fragment.name}"
                if name not in self._staging:
                    self._staging[name] = torch.empty(
                        values.shape, dtype=torch.float32, pin_memory=torch.cuda.is_available()
                    )
                self._staging[name].copy_(values, non_blocking=True)
                tensors[name] = BoxedTensor(fragment.shape, fragment.boxes, self._staging[name])
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        return Shard(tensors, self._engine.module.config)

    def _run(self, shard: Shard, save: _Save) -> None:
        """The thread: attempts until one succeeds or all have failed, the same on every rank."""
        settings, wait = self._settings, self._settings.retry_seconds
        error = ""
        for number in range(1, max(1, settings.attempts) + 1):
            if number > 1:
                time.sleep(wait)
                wait *= 2
            try:
                error = self._attempt(shard, save)
            except RuntimeError as lost:  # a rank is gone, and with it the group
                self._failure = CheckpointError(f"checkpoint of step {save.step} was not written: {lost}")
                self._failure.__cause__ = lost
                return
            if not error:
                self._failure = None
                return
            retry = wait if number < settings.attempts else None
            self._report_event(
                "checkpoint_failed", save.step, attempt=number, error=error, retry_seconds=retry
            )
        tries = f" in {settings.attempts} attempts" if settings.attempts > 1 else ""
        self._failure = CheckpointError(f"checkpoint of step {save.step} was not written{tries}: {error}")

    def _attempt(self, shard: Shard, save: _Save) -> str:
        """Write and commit once; return the error, on every rank the same (empty: none)."""
        attempt: str = broadcast_json(uuid.uuid4().hex[:8], self._group)
        written = write_shard(self._location, save.step, dist.get_rank(), attempt, shard)
        messages = gather_bytes(written.encode(), self._group)

        def commit_all() -> None:
            shapes, metadata = shard.shapes, dict(save.metadata)
            shards = [WrittenShard.decode(message) for message in messages]
            commit(self._location, save.step, save.optimizer_step, metadata, attempt, shards, shapes)

        error, certain = self._on_first_rank(commit_all)
        if not error:
            self._remove_old(save.step, attempt)
        elif certain:
            self._remove_attempt(save.step, written.started)
        return error

    def _on_first_rank(self, function: Callable[[], None]) -> tuple[str, bool]:
        """Call a function on rank 0; every rank gets its error (empty: none), and whether it is certain."""
        outcome: list[Any] = ["", True]
        if dist.get_rank() == 0:
            try:
                function()
            except AttemptFailedError as error:
                outcome[0] = str(error)
            except (OSError, InputError) as error:
                outcome = [f"rank 0: {error}", not isinstance(error, UncertainCommitError)]
        error, certain = broadcast_json(outcome, self._group)
        return error, certain

    def _clean(self) -> None:
        removed = self._location.remove_incomplete()
        self.committed = self._location.steps()
        if removed and self._report is not None:
            self._report("checkpoint_cleaned", step=self._engine.step_count, removed=removed)

    def _remove_attempt(self, step: int, names: list[str]) -> None:
        """Remove this rank's files of a failed attempt, as far as the storage allows."""
        try:
            self._location.remove_files(step, names)
        except OSError as error:  # the next start cleans up
            self._report_event("checkpoint_not_removed", step, error=str(error))

    def _remove_old(self, step: int, attempt: str) -> None:
        """Apply the retention settings (rank 0); a removal that fails is retried after the next save."""
        if dist.get_rank() != 0:
            return
        try:
            self._location.remove_other_attempts(step, attempt)
            self.committed = self._location.steps()
            rates = success_rates(self._evaluations)
            for old in steps_to_remove(self.committed, self._settings, rates):
                self._location.remove(old)
                self.committed = [other for other in self.committed if other != old]
        except (OSError, InputError) as error:
            self._report_event("checkpoint_not_removed", step, error=str(error))

    def _report_event(self, event: str, step: int | None, **details: Any) -> None:
        if self._report is not None and dist.get_rank() == 0:
            self._report(event, step=step, **details)
