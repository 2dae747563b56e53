"""Saves while training goes on: copy to host memory, write, check and commit, all in the background."""

from __future__ import annotations

import _thread
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

from data.errors import InputError
from pretrain.checkpoint.commit import AttemptFailedError, Shard, WrittenShard, commit, write_shard
from pretrain.checkpoint.fragments import optimizer_step
from pretrain.checkpoint.location import CheckpointLocation, UncertainCommitError
from pretrain.checkpoint.manifest import StoredAverage
from pretrain.checkpoint.messages import all_gather_json, broadcast_json, gather_bytes
from pretrain.checkpoint.retention import steps_to_remove, success_rates
from pretrain.checkpoint.staging import ShardStaging
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
    average: StoredAverage | None


class CheckpointWriter:
    """Writes checkpoints of one engine to one location; every rank makes one and calls the same methods.

    A checkpoint is committed when its READY marker is written, with everything durable before. Files of
    interrupted saves are removed when the writer is made. A save that fails is retried in the background;
    only when all attempts have failed do all ranks get the error, at the next call. A shard that cannot be
    copied to host memory is not: the state has changed since.

    Args:
        location: Of the run's checkpoints; a path or URL serves as well.
        engine: Whose state is saved.
        settings: Attempts, waits between them, and retention.
        evaluations: The run's `eval/`, for `keep_best` and `await_evaluation`.
        report: Called with the events `checkpoint_cleaned`, `checkpoint_failed` and `checkpoint_not_removed`.

    Attributes:
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
        self._ended = threading.Event()  # the thread that saves, if any
        self._ended.set()
        self._failure: CheckpointError | None = None
        self._staging = ShardStaging(engine)
        self.committed: list[int] = []
        if error := self._on_first_rank(self._clean)[0]:
            raise InputError(
                f"{self._location.url}: cannot be used for checkpoints ({error}); set checkpointing.url to a "
                "place that you may write to"
            )

    def save(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Start a checkpoint of the present state; waits only for the save before this one.

        The state is copied to host memory while the training goes on; the next update, or whatever else
        changes weights or moments, waits for it.

        Args:
            step: Optimiser steps done.
            metadata: JSON values that `load` returns; rank 0's are stored.

        Raises:
            CheckpointError: The save before this one failed.
        """
        self.wait()
        shard = self._staging.start()
        save = _Save(step, optimizer_step(self._engine), dict(metadata), self._average())
        # Set until the thread has succeeded, so that a thread that dies cannot pass for a success.
        self._failure = CheckpointError(
            f"checkpoint of step {step} was not written: its thread died, see the traceback above"
        )
        self._ended.clear()
        # `threading.Thread` would wait for its thread to run: on busy cores longer than a copy takes.
        _thread.start_new_thread(self._run, (shard, save))
        self._engine.before_next_change(self._staging.wait_before_change)

    def take_wait(self) -> float:
        """Seconds for which updates have waited for a save's copies since the last call.

        The wait of a GPU is known only when the GPU has come so far; until then it is left for a later call.
        """
        return self._staging.take_wait()

    def wait(self) -> None:
        """Wait until the running save, if any, is committed.

        Raises:
            CheckpointError: It failed; the message names the rank and the cause.
        """
        self._ended.wait()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _average(self) -> StoredAverage | None:
        average = self._engine.average
        return None if average is None else StoredAverage(average.decay, int(average.updates))

    def _run(self, shard: Shard, save: _Save) -> None:
        """The thread: copies and writes; it succeeds or fails on every rank alike."""
        try:
            self._copy(save)
            self._write(shard, save)
            self._failure = None
        except CheckpointError as failure:
            self._failure = failure
        except RuntimeError as lost:  # a rank is gone, and with it the group
            self._failure = CheckpointError(f"checkpoint of step {save.step} was not written: {lost}")
            self._failure.__cause__ = lost
        finally:
            self._ended.set()

    def _copy(self, save: _Save) -> None:
        """Make the copies on every rank; raise on all, with the first one's cause, if any could not."""
        error = ""
        try:
            self._staging.run()
        except (RuntimeError, ValueError, MemoryError) as failure:  # peers must hear of it, or they wait
            error = f"rank {dist.get_rank()}: not copied to host memory ({failure})"
        ranks = dist.get_world_size()
        first = torch.tensor(dist.get_rank() if error else ranks)
        dist.all_reduce(first, dist.ReduceOp.MIN, group=self._group)
        if first == ranks:
            return
        error = all_gather_json(error, self._group)[int(first)]
        self._report_event("checkpoint_failed", save.step, attempt=0, error=error, retry_seconds=None)
        raise CheckpointError(f"checkpoint of step {save.step} was not written: {error}")

    def _write(self, shard: Shard, save: _Save) -> None:
        """Attempt until one succeeds; raise if all have failed."""
        settings, wait = self._settings, self._settings.retry_seconds
        error = ""
        for number in range(1, max(1, settings.attempts) + 1):
            if number > 1:
                time.sleep(wait)
                wait *= 2
            error = self._attempt(shard, save)
            if not error:
                return
            retry = wait if number < settings.attempts else None
            self._report_event(
                "checkpoint_failed", save.step, attempt=number, error=error, retry_seconds=retry
            )
        tries = f" in {settings.attempts} attempts" if settings.attempts > 1 else ""
        raise CheckpointError(f"checkpoint of step {save.step} was not written{tries}: {error}")

    def _attempt(self, shard: Shard, save: _Save) -> str:
        """Write and commit once; return the error, on every rank the same (empty: none)."""
        attempt: str = broadcast_json(uuid.uuid4().hex[:8], self._group)
        written = write_shard(self._location, save.step, dist.get_rank(), attempt, shard)
        messages = gather_bytes(written.encode(), self._group)

        def commit_all() -> None:
            shapes, metadata = shard.shapes, dict(save.metadata)
            shards = [WrittenShard.decode(message) for message in messages]
            commit(
                self._location,
                save.step,
                save.optimizer_step,
                metadata,
                attempt,
                shards,
                shapes,
                save.average,
            )

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
