"""Evaluations beside the training: one actor per committed checkpoint, in a placement group of its own.

The actor runs the simulators and the policy server as processes of its machine; the placement group reserves
their CPUs and, for the policy, a share of a GPU, so that the training loses none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cluster.run.progress_poll import ProgressPoll
from cluster.run.worker_process import enter_worker, log_process, read_failures, remove_failures

if TYPE_CHECKING:
    from eval.config import EvaluationConfig

_NICENESS = 10
_MAX_RESTARTS = 2  # of a worker that dies, in each evaluation

Progress = Callable[[int, int], None]
"""Called with the number of finished episodes and their total."""

Results = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """One evaluation.

    Attributes:
        step: Step of the checkpoint.
        checkpoint: Its folder or URL.
        out: Folder for the results.
        settings: Suite, tasks, episodes; with `imagine_frames` also world-model rollouts.
    """

    step: int
    checkpoint: str
    out: Path
    settings: EvaluationConfig


Evaluate = Callable[[EvaluationJob, Progress], Results]
"""Runs one evaluation in a process of its own: importable under its name."""


@dataclass(frozen=True, slots=True)
class EvaluationOutcome:
    """How one evaluation has ended.

    Attributes:
        step: Step of the checkpoint.
        results: Content of its `results.json`; None when it failed.
        error: Cause and log file in one line; None when it did not fail.
        cancelled: It was cancelled for a newer checkpoint.
    """

    step: int
    results: Results | None
    error: str | None
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class _Pending:
    placement_group: Any
    worker: Any
    result: Any
    progress: ProgressPoll[tuple[int, int]]


class EvaluationGroup:
    """Submits evaluations and collects their outcomes; no method blocks.

    Args:
        logs: Folder for one log per evaluation.
        evaluate: Runs one, in the actor.
    """

    def __init__(self, logs: Path, evaluate: Evaluate) -> None:
        self._logs, self._evaluate = logs, evaluate
        self._pending: dict[int, _Pending] = {}
        self._cancelled: list[EvaluationOutcome] = []

    @property
    def pending(self) -> list[int]:
        """Steps whose evaluation has not ended, ascending."""
        return sorted(self._pending)

    def submit(self, job: EvaluationJob) -> None:
        """Queue the evaluation of one checkpoint; it starts when its CPUs and its share of a GPU are free.

        With `eval.stale=cancel`, those of older checkpoints that have not ended are cancelled. Their finished
        episodes stay in their folders.
        """
        if job.settings.stale == "cancel":
            for step in [step for step in self.pending if step < job.step]:
                self._release(self._pending.pop(step))
                self._cancelled.append(EvaluationOutcome(step, None, None, cancelled=True))
        self._logs.mkdir(parents=True, exist_ok=True)
        remove_failures(self._logs, _log_name(job.step))
        self._pending[job.step] = self._start(job)

    def _start(self, job: EvaluationJob) -> _Pending:
        import ray
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        name = _log_name(job.step)
        resources: dict[str, float] = {"CPU": job.settings.workers}
        if job.settings.gpus:
            resources["GPU"] = job.settings.gpus
        group = placement_group([resources], strategy="STRICT_PACK", name=name)
        # Two threads: one evaluates, the other reports progress. Ray replaces a worker that dies, and its
        # evaluation resumes with the remaining episodes; an exception is not retried.
        actor: Any = ray.remote(EvaluationWorker)
        worker = actor.options(
            num_cpus=job.settings.workers,
            num_gpus=job.settings.gpus,
            max_concurrency=2,
            max_restarts=_MAX_RESTARTS,
            max_task_retries=_MAX_RESTARTS,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        ).remote(self._evaluate, self._logs.resolve(), name, os.getcwd(), job.settings.gpus)
        return _Pending(group, worker, worker.evaluate.remote(job), ProgressPoll(worker, (0, 0)))

    def take_outcomes(self) -> list[EvaluationOutcome]:
        """Outcomes of the evaluations that have ended, or were cancelled, since the last call."""
        import ray

        cancelled, self._cancelled = self._cancelled, []
        return cancelled + [
            self._collect(step)
            for step in self.pending
            if ray.wait([self._pending[step].result], timeout=0)[0]
        ]

    def progress(self) -> dict[int, tuple[int, int]]:
        """Step -> finished episodes and their total, according to the newest answer of each worker."""
        return {step: pending.progress.latest() for step, pending in self._pending.items()}

    def _collect(self, step: int) -> EvaluationOutcome:
        import ray
        from ray.exceptions import RayError

        pending = self._pending.pop(step)
        try:
            outcome = EvaluationOutcome(step, cast(Results, ray.get(pending.result)), None)
        except RayError as error:
            outcome = EvaluationOutcome(step, None, self._explain(step, error))
        pending.progress.close()
        self._release(pending)
        return outcome

    @staticmethod
    def _release(pending: _Pending) -> None:
        """End the actor, whose processes end with it, and free what its placement group reserved."""
        import ray
        from ray.util import remove_placement_group

        ray.kill(pending.worker)
        remove_placement_group(pending.placement_group)

    def _explain(self, step: int, error: Exception) -> str:
        failures = read_failures(self._logs, _log_name(step))
        if failures and failures[0].user_mistake:
            return failures[0].message
        log = self._logs / f"{_log_name(step)}.log"
        if failures:
            return f"{failures[0].headline}; see {log}"
        with suppress(OSError), log.open("a", encoding="utf-8") as file:  # what Ray knows of a killed process
            file.write(f"{error}\n")
        return f"its worker died ({type(error).__name__}); see {log}"


class EvaluationWorker:
    """The actor: a process of its own that evaluates one checkpoint.

    Args:
        evaluate: Runs the evaluation.
        logs: Folder for its log and its failure record.
        name: Of both files.
        working_folder: Of the command.
        gpus: GPUs that were reserved for it.
    """

    def __init__(
        self, evaluate: Evaluate, logs: Path, name: str, working_folder: str, gpus: float = 0.0
    ) -> None:
        enter_worker(working_folder, gpus)
        if not gpus:
            os.nice(_NICENESS)  # on shared CPUs the training goes first; its children inherit it
        self._evaluate, self._logs, self._name = evaluate, logs, name
        self._progress = (0, 0)

    def evaluate(self, job: EvaluationJob) -> Results:
        """Evaluate and return the results."""
        with log_process(self._logs, self._name):
            return self._evaluate(job, self._set_progress)

    def progress(self) -> tuple[int, int]:
        """Finished episodes and their total."""
        return self._progress

    def _set_progress(self, done: int, total: int) -> None:
        self._progress = (done, total)


def _log_name(step: int) -> str:
    return f"eval_{step:08d}"
