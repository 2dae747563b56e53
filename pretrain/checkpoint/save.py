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
from pretrain.checkpoint.attempt import RefusedError, Shard, commit, write_shard
from pretrain.checkpoint.boxes import BoxedTensor
from pretrain.checkpoint.fragments import fragments, optimizer_step
from pretrain.checkpoint.location import CheckpointPlace, UnsureError
from pretrain.checkpoint.retention import evaluated, superfluous
from pretrain.config import CheckpointingConfig

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

Report = Callable[..., None]
"""Takes the name of an event and its details; called from the thread that writes, on rank 0."""

_PATIENCE = timedelta(hours=2)  # for a rank whose storage is slow


class CheckpointError(RuntimeError):
    """A save failed on some rank; older checkpoints are untouched."""


@dataclass(frozen=True, slots=True)
class _Save:
    """What a save needs to know beside the tensors."""

    step: int
    optimizer_step: int
    metadata: Mapping[str, Any]


class CheckpointWriter:
    """Writes checkpoints of one engine to one place; made and used by all ranks alike.

    A checkpoint is one from the moment in which its READY marker is written, with everything durable before.
    What saves left that were cut short goes when the writer is made. A save that fails is tried again in the
    background; only when all attempts have failed do all ranks get the error, at the next call.

    Args:
        place: Where to; a path or URL serves as well.
        engine: What is saved.
        settings: Attempts, waits between them, and which checkpoints are kept.
        evaluations: The run's `eval/`, for `keep_best` and `await_evaluation`.
        report: Told what goes wrong as `checkpoint_failed` and `checkpoint_not_removed`.

    Attributes:
        stall: Seconds for which the last `save` held up the training.
        committed: Steps of the checkpoints that are there, as last seen (rank 0; empty on others).

    Raises:
        InputError: The place cannot be listed, or not be cleaned of what saves left that were cut short.
    """

    def __init__(
        self,
        place: CheckpointPlace | Path | str,
        engine: Engine,
        settings: CheckpointingConfig | None = None,
        evaluations: Path | None = None,
        report: Report | None = None,
    ) -> None:
        self._place = place if isinstance(place, CheckpointPlace) else CheckpointPlace(place)
        self._engine = engine
        self._settings = settings or CheckpointingConfig()
        self._evaluations = evaluations
        self._report = report
        # The thread's own group: training uses others meanwhile.
        self._group: Any = dist.new_group(backend="gloo", timeout=_PATIENCE)
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self._staging: dict[str, Tensor] = {}
        self._stage()  # takes the host memory now, not in the middle of the training
        self.stall = 0.0
        self.committed: list[int] = []
        if problem := self._first(self._clean)[0]:
            raise InputError(
                f"{self._place.url}: cannot be used for checkpoints ({problem}); set checkpointing.url to a "
                "place that you may write to"
            )

    def save(self, step: int, metadata: Mapping[str, Any]) -> None:
        """Begin a checkpoint; returns as soon as the state is copied.

        Args:
            step: Optimiser steps done.
            metadata: JSON values to get back from `load`; rank 0's are stored.

        Raises:
            CheckpointError: The save before this one failed.
        """
        start = time.perf_counter()
        self.wait()
        shard = self._stage()
        save = _Save(step, optimizer_step(self._engine), dict(metadata))
        # True until the thread says otherwise, so that one that dies cannot pass for a success.
        self._failure = CheckpointError(
            f"checkpoint of step {step} was not written: its thread died, see the traceback above"
        )
        self._thread = threading.Thread(target=self._run, args=(shard, save), name="checkpoint", daemon=True)
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

    def _stage(self) -> Shard:
        """Copy this rank's part to host memory that is kept for the next save."""
        tensors: dict[str, BoxedTensor] = {}
        for fragment in fragments(self._engine):
            if not fragment.written:
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
        problem = ""
        for number in range(1, max(1, settings.attempts) + 1):
            if number > 1:
                time.sleep(wait)
                wait *= 2
            try:
                problem = self._attempt(shard, save)
            except RuntimeError as error:  # a rank is gone: nobody can agree on anything any more
                self._failure = CheckpointError(f"checkpoint of step {save.step} was not written: {error}")
                self._failure.__cause__ = error
                return
            if not problem:
                self._failure = None
                return
            again = wait if number < settings.attempts else None
            self._tell("checkpoint_failed", save.step, attempt=number, error=problem, retry_seconds=again)
        tries = f" in {settings.attempts} attempts" if settings.attempts > 1 else ""
        self._failure = CheckpointError(f"checkpoint of step {save.step} was not written{tries}: {problem}")

    def _attempt(self, shard: Shard, save: _Save) -> str:
        """Write and commit once; every rank gets to know what went wrong, empty: nothing."""
        name = [uuid.uuid4().hex[:8]]
        dist.broadcast_object_list(name, 0, group=self._group)
        written = write_shard(self._place, save.step, dist.get_rank(), name[0], shard)
        first = dist.get_rank() == 0
        parts: list[Any] | None = [None] * dist.get_world_size() if first else None
        dist.gather_object(written, parts, 0, group=self._group)

        def work() -> None:
            metadata = dict(save.metadata)
            commit(self._place, save.step, save.optimizer_step, metadata, name[0], parts or [], shard.shapes)

        problem, sure = self._first(work)
        if not problem:
            self._retain(save.step, name[0])
        elif sure:
            self._clear(save.step, name[0], written.begun)
        return problem

    def _first(self, work: Callable[[], None]) -> tuple[str, bool]:
        """Do something on rank 0; every rank gets what the storage said, and whether that is for sure.

        Empty: nothing went wrong.
        """
        outcome: list[Any] = ["", True]
        if dist.get_rank() == 0:
            try:
                work()
            except RefusedError as error:
                outcome[0] = str(error)
            except (OSError, InputError) as error:
                outcome = [f"rank 0: {error}", not isinstance(error, UnsureError)]
        dist.broadcast_object_list(outcome, 0, group=self._group)
        return outcome[0], outcome[1]

    def _clean(self) -> None:
        torn = self._place.clean()
        self.committed = self._place.steps()
        if torn and self._report is not None:
            self._report("checkpoint_cleaned", step=self._engine.step_count, removed=torn)

    def _clear(self, step: int, attempt: str, names: list[str]) -> None:
        """Remove what a failed attempt left, as far as the storage allows."""
        try:
            self._place.abandon(step, attempt, names)
        except OSError as error:  # the next start cleans up
            self._tell("checkpoint_not_removed", step, error=str(error))

    def _retain(self, step: int, attempt: str) -> None:
        """Remove what is superfluous (rank 0); what cannot be removed now is tried after the next save."""
        if dist.get_rank() != 0:
            return
        try:
            self._place.tidy(step, attempt)
            self.committed = self._place.steps()
            for old in superfluous(self.committed, self._settings, evaluated(self._evaluations)):
                self._place.remove(old)
                self.committed = [kept for kept in self.committed if kept != old]
        except (OSError, InputError) as error:
            self._tell("checkpoint_not_removed", step, error=str(error))

    def _tell(self, event: str, step: int | None, **details: Any) -> None:
        if self._report is not None and dist.get_rank() == 0:
            self._report(event, step=step, **details)
