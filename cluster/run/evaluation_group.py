"""Evaluations beside the training: for each committed checkpoint an actor in a placement group of its own.

The actor runs the simulators and the policy server as processes of its machine; the group reserves their CPUs
and, for the policy, a share of a GPU, so that the training loses none.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cluster.run.worker_process import forget_failures, read_failures, recorded

if TYPE_CHECKING:
    from eval.config import EvaluationConfig

_REPLACEMENTS = 2  # of a worker that dies, for each evaluation
_LAST_ANSWER = 2.0  # seconds; a worker that has finished answers at once

Progress = Callable[[int, int], None]
Results = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EvaluationJob:
    """What one evaluation needs to know.

    Attributes:
        step: Of the checkpoint.
        checkpoint: Its folder or URL.
        out: Folder for the results.
        settings: Suite, tasks, episodes.
        imagine: Also make a world-model rollout.
    """

    step: int
    checkpoint: str
    out: Path
    settings: EvaluationConfig
    imagine: bool


Evaluate = Callable[[EvaluationJob, Progress], Results]
"""Does one evaluation in a process of its own: importable under its name."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One evaluation that has ended.

    Attributes:
        step: Of the checkpoint.
        results: Content of its `results.json`; None when it failed.
        error: What went wrong and where the whole story is, in one line; None when nothing did.
        cancelled: It was given up for a newer checkpoint.
    """

    step: int
    results: Results | None
    error: str | None
    cancelled: bool = False


@dataclass(slots=True)
class _Pending:
    group: Any
    worker: Any
    result: Any
    asked: Any = None
    progress: tuple[int, int] = field(default=(0, 0))


class EvaluationGroup:
    """Submits evaluations and collects what they leave; nothing here waits.

    Args:
        logs: Folder for one log an evaluation.
        evaluate: Does one, in the actor.
    """

    def __init__(self, logs: Path, evaluate: Evaluate) -> None:
        self._logs, self._evaluate = logs, evaluate
        self._pending: dict[int, _Pending] = {}
        self._cancelled: list[Finished] = []

    @property
    def pending(self) -> list[int]:
        """Steps whose evaluation has not ended, ascending."""
        return sorted(self._pending)

    def submit(self, job: EvaluationJob) -> None:
        """Queue the evaluation of one checkpoint; it begins when its CPUs and its share of a GPU are free.

        Where `eval.stale` is `cancel`, those of older checkpoints that have not ended are given up. Their
        finished episodes stay in their folders.
        """
        import ray
        from ray.util import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if job.settings.stale == "cancel":
            for step in [step for step in self.pending if step < job.step]:
                self._end(self._pending.pop(step))
                self._cancelled.append(Finished(step, None, None, cancelled=True))
        name = _log_name(job.step)
        self._logs.mkdir(parents=True, exist_ok=True)
        forget_failures(self._logs, name)
        resources: dict[str, float] = {"CPU": job.settings.workers}
        if job.settings.gpus:
            resources["GPU"] = job.settings.gpus
        group = placement_group([resources], strategy="STRICT_PACK", name=name)
        # Two threads: one evaluates, the other answers how far it is. A worker that dies is replaced and
        # its evaluation goes on with the episodes that are left; an exception is not retried.
        actor: Any = ray.remote(_EvaluationWorker)
        worker = actor.options(
            num_cpus=job.settings.workers,
            num_gpus=job.settings.gpus,
            max_concurrency=2,
            max_restarts=_REPLACEMENTS,
            max_task_retries=_REPLACEMENTS,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        ).remote(self._evaluate, self._logs.resolve(), name, os.getcwd())
        self._pending[job.step] = _Pending(group, worker, worker.evaluate.remote(job))

    def finished(self) -> list[Finished]:
        """Evaluations that have ended, or were given up, since the last call."""
        import ray

        cancelled, self._cancelled = self._cancelled, []
        return cancelled + [
            self._collect(step)
            for step in self.pending
            if ray.wait([self._pending[step].result], timeout=0)[0]
        ]

    def progress(self) -> dict[int, tuple[int, int]]:
        """Step -> episodes done and wanted, as far as the workers have answered."""
        import ray
        from ray.exceptions import RayError

        for pending in self._pending.values():
            if pending.asked is None:
                pending.asked = pending.worker.progress.remote()
            elif ray.wait([pending.asked], timeout=0)[0]:
                try:
                    pending.progress = ray.get(pending.asked)
                except RayError:
                    continue  # the worker is gone: `finished` tells why
                pending.asked = None
        return {step: pending.progress for step, pending in self._pending.items()}

    def _collect(self, step: int) -> Finished:
        import ray
        from ray.exceptions import RayError

        pending = self._pending.pop(step)
        try:
            finished = Finished(step, cast(Results, ray.get(pending.result)), None)
        except RayError as died:
            finished = Finished(step, None, self._explain(step, died))
        if pending.asked is not None:  # else Ray complains of a question that died with its worker
            ray.wait([pending.asked], timeout=_LAST_ANSWER)
        self._end(pending)
        return finished

    @staticmethod
    def _end(pending: _Pending) -> None:
        """End the actor, whose processes end with it, and free what its group reserved."""
        import ray
        from ray.util import remove_placement_group

        ray.kill(pending.worker)
        remove_placement_group(pending.group)

    def _explain(self, step: int, died: Exception) -> str:
        failures = read_failures(self._logs, _log_name(step))
        if failures and failures[0].user_mistake:
            return failures[0].message
        log = self._logs / f"{_log_name(step)}.log"
        if failures:
            return f"{failures[0].headline}; see {log}"
        with log.open("a") as file:  # what Ray knows of a process that could not speak for itself
            file.write(f"{died}\n")
        return f"its worker died ({type(died).__name__}); see {log}"


class _EvaluationWorker:
    """The actor: a process of its own that evaluates one checkpoint."""

    def __init__(self, evaluate: Evaluate, logs: Path, name: str, folder: str) -> None:
        self._evaluate, self._logs, self._name = evaluate, logs, name
        if os.path.isdir(folder):  # relative paths of the settings; other machines may not have it
            os.chdir(folder)
        self._progress = (0, 0)

    def evaluate(self, job: EvaluationJob) -> Results:
        """Evaluate and return the results."""
        with recorded(self._logs, self._name):
            return self._evaluate(job, self._note)

    def progress(self) -> tuple[int, int]:
        """Episodes done and wanted."""
        return self._progress

    def _note(self, done: int, wanted: int) -> None:
        self._progress = (done, wanted)


def _log_name(step: int) -> str:
    return f"eval_{step:08d}"
