"""One training run from start to end: ranks, progress, W&B, an evaluation of every checkpoint that is due."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.config import RootConfig
from cluster.console import Bar, Board
from cluster.failures import CommandFailedError
from cluster.resources.placement import Placement, place
from cluster.resources.ray_session import Session, open_session
from cluster.run.checkpoint_watch import CheckpointWatch, due_steps, evaluated_steps
from cluster.run.evaluation_group import Evaluate, EvaluationGroup, EvaluationJob, Finished
from cluster.run.stop_request import WishToEnd, signals_passed_on
from cluster.run.training import Train, Training
from data.errors import InputError
from pretrain.checkpoint.location import checkpoint_location
from pretrain.checks import check_training
from pretrain.faults.exit_codes import PreemptedError
from pretrain.run_folder import RunFolder
from pretrain.run_layout import RESULTS_FILE, files_by_step
from pretrain.run_start import RunStart, open_run
from pretrain.settings import to_mapping
from pretrain.telemetry.console import describe, describe_event
from pretrain.telemetry.events import EventLog
from pretrain.telemetry.sinks import MetricsTail
from pretrain.telemetry.wandb_sink import WandbSink

_SECONDS_BETWEEN_LOOKS = 0.25
_SUMMARY_KEYS = ("step", "suite", "tasks", "episodes", "successes", "errors", "success_rate")


def supervise(
    config: RootConfig,
    console: Console,
    train: Train,
    evaluate: Evaluate,
    trained: Callable[[], None] = lambda: None,
) -> RunFolder:
    """Train to the end (or to `trainer.stop_after`), evaluating checkpoints beside it; return the run folder.

    Training never waits for an evaluation; the command ends when the last evaluation has. A training that
    fails is started again from its newest checkpoint, while `cluster.run.restarts` allows.

    Args:
        config: The run.
        console: Where progress is shown.
        train: Runs in every rank.
        evaluate: Runs in a process of its own for every checkpoint that is due.
        trained: Called once, when the training has ended; evaluations may still run.

    Raises:
        InputError: The settings, the run folder or the machine do not allow the run.
        PreemptedError: It was asked to end by SIGTERM or SIGUSR1, and has; the same command goes on.
        CommandFailedError: A rank or an evaluation failed.
    """
    check_training(config)
    placement = plan_run(config)
    config = replace(config, checkpointing=replace(config.checkpointing, await_evaluation=config.eval.every))
    folder = RunFolder.of(config.run)
    start = open_run(config, folder)
    with (
        _alone_in(folder),
        closing(WandbSink(folder.path, config.run.name, config.telemetry, to_mapping(config))) as wandb,
        open_session(config.cluster, placement) as session,
        Board(console) as board,
        signals_passed_on(folder.stop_request) as wish,  # after the session, which sets a handler of its own
    ):
        _Supervisor(config, folder, board, wandb, evaluate).run(session, start, train, wish, trained)
    return folder


@contextmanager
def _alone_in(folder: RunFolder) -> Iterator[None]:
    """Keep a second command out of the run folder; the lock goes with the process, however it ends."""
    with folder.supervisor_lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder.path}: another command is training in this folder; wait for it, "
                "or choose another run.name"
            ) from error
        yield


def plan_run(config: RootConfig) -> Placement:
    """Check what can be checked before any process starts, and plan the resources.

    Raises:
        InputError: Too few CPUs or GPUs, evaluation settings that cannot work, a simulator that is missing.
    """
    found = 0
    if config.cluster.gpus_per_rank != 0 and config.cluster.address is None:
        import torch

        found = torch.cuda.device_count()
    placement = place(config, found)
    if config.eval.every > 0:
        if config.eval.every % config.checkpointing.every:
            raise InputError(
                f"eval.every={config.eval.every} is not a multiple of checkpointing.every="
                f"{config.checkpointing.every}; only checkpoints can be evaluated"
            )
        from eval.evaluation.evaluate import check_settings
        from eval.simulator.registry import open_suite, select_tasks

        check_settings(config.eval, "eval.")
        select_tasks(open_suite(config.eval.suite), config.eval.tasks)
    return placement


def last_step(config: RootConfig) -> int:
    """The step at which this command ends its training."""
    return min(config.trainer.steps, config.trainer.stop_after or config.trainer.steps)


class _Supervisor:
    def __init__(
        self, config: RootConfig, folder: RunFolder, board: Board, wandb: WandbSink, evaluate: Evaluate
    ) -> None:
        self._config, self._folder, self._board, self._wandb = config, folder, board, wandb
        self._logs = folder.logs
        self._tail = MetricsTail(folder.metrics, from_end=True)
        self._evaluations = EvaluationGroup(self._logs, evaluate)
        self._begun = evaluated_steps(folder.evaluations)
        self._place = checkpoint_location(config.checkpointing, folder)
        self._watch = CheckpointWatch(self._place)
        self._done_before = max(self._watch.steps(), default=0)
        self._train_bar = board.bar("train", last_step(config), self._done_before)
        self._eval_bars: dict[int, Bar] = {}
        self._failures: list[Finished] = []
        self._events = EventLog(folder.events)

    def run(
        self,
        session: Session,
        start: RunStart,
        train: Train,
        wish: WishToEnd,
        trained: Callable[[], None],
    ) -> None:
        """Until the training and every evaluation have ended."""
        self._train_bar.update(self._done_before, note=f"starting {session.placement.ranks} processes")
        training = Training(self._config, session, self._folder, start, train, wish, self._place)
        trained_out = _in_background(training.run)
        while not trained_out.done():
            wait([trained_out], _SECONDS_BETWEEN_LOOKS)
            self._look(training)
            training.grow()
        self._look(training)
        if trained_out.exception() is not None:
            self._name_pending()
        trained_out.result()  # raises what the training raised
        self._look(now=True)
        trained()
        while self._evaluations.pending:
            if wish.wait(_SECONDS_BETWEEN_LOOKS):
                self._name_pending()
                raise PreemptedError("ended as asked; the training had ended, its evaluations had not")
            self._look()
        if self._failures:
            first = self._failures[0]
            raise CommandFailedError(f"the evaluation of step {first.step} failed: {first.error}")

    def _look(self, training: Training | None = None, now: bool = False) -> None:
        """Take in what has happened since the last look; `now`: also of an object store."""
        for record in self._tail.new():
            self._show(record)
        for event in training.events() if training is not None else ():
            self._note(event)
        for step in self._due(now):
            self._begin_evaluation(step)
        for step, (done, wanted) in self._evaluations.progress().items():
            self._eval_bars[step].update(done, wanted or None)
        for finished in self._evaluations.finished():
            self._end_evaluation(finished)

    def _show(self, record: dict[str, Any]) -> None:
        self._wandb.write(record)
        if "event" in record:
            self._board.console.print(f"  {describe_event(record)}", markup=False)
        else:
            self._train_bar.update(record["step"], note=describe(record))

    def _note(self, event: dict[str, Any]) -> None:
        """Tell everybody of an event that is not the trainer's own."""
        self._events.write(event)
        self._show(event)

    def _name_pending(self) -> None:
        if pending := self._evaluations.pending:
            steps = ", ".join(map(str, pending))
            self._board.console.print(f"  evaluations that did not end: steps {steps}; resuming does them")

    def _due(self, now: bool) -> list[int]:
        if self._config.eval.every == 0:
            return []  # without asking an object store that may be away
        committed = self._watch.steps(now)
        return due_steps(committed, self._config.eval.every, self._config.trainer.steps, self._begun)

    def _begin_evaluation(self, step: int) -> None:
        self._begun.add(step)
        label = f"evaluate step {step}"
        self._eval_bars[step] = self._board.bar(label, None)
        self._evaluations.submit(
            EvaluationJob(
                step,
                self._place.checkpoint_url(step),
                self._folder.evaluation(step),
                self._config.eval,
                imagine=self._config.eval.imagine_frames > 0,
            )
        )

    def _end_evaluation(self, finished: Finished) -> None:
        if finished.cancelled:
            self._board.console.print(f"  evaluation of step {finished.step} given up for a newer checkpoint")
            self._events.write({"event": "evaluation_given_up", "step": finished.step})
            return
        if finished.results is None:
            if finished.step not in self._watch.steps(now=True):
                kept = f"checkpointing.keep_last={self._config.checkpointing.keep_last}"
                why = (
                    f"its checkpoint was removed before it was read ({kept}); keep more, or raise eval.every"
                )
                finished = replace(finished, error=why)
            self._failures.append(finished)
            self._events.write({"event": "evaluation_failed", "step": finished.step, "error": finished.error})
            self._board.console.print(f"  evaluation of step {finished.step} failed: {finished.error}")
            return
        results = finished.results
        episodes = int(results["episodes"])
        self._eval_bars[finished.step].update(episodes, episodes, note=outcome(results))
        record_evaluations(self._folder)
        self._events.write({"event": "evaluated", "step": finished.step, **_told(results)})
        self._wandb.log(finished.step, _wandb_values(results, self._folder.evaluation(finished.step)))


def _told(results: Mapping[str, Any]) -> dict[str, Any]:
    return {key: results.get(key) for key in ("suite", "episodes", "successes", "errors")}


def outcome(results: Mapping[str, Any]) -> str:
    """Successes and errors of an evaluation in a few words."""
    text = f"{results['successes']} of {results['episodes']} episodes succeeded"
    return f"{text}, {results['errors']} ended in an error" if results["errors"] else text


def record_evaluations(folder: RunFolder) -> None:
    """Write what all evaluations of a run left into its `summary.json`."""
    paths = files_by_step(folder.evaluations, RESULTS_FILE).values()
    found = [json.loads(path.read_text()) for path in paths]
    folder.update_summary(evaluations=[{key: results.get(key) for key in _SUMMARY_KEYS} for results in found])


def _wandb_values(results: Mapping[str, Any], out: Path) -> dict[str, float | Path]:
    """Numbers, videos and pictures of one evaluation under their names in W&B."""
    values: dict[str, float | Path] = {
        f"eval/{key}": float(results[key])
        for key in ("success_rate", "episodes", "errors")
        if results[key] is not None  # no rate where every episode ended in an error
    }
    values |= {f"world_model/{name}": value for name, value in results.get("world_model", {}).items()}
    values |= {f"eval/{path.stem}": path for path in sorted(out.glob("*.mp4"))}
    return values | {f"eval/{path.stem}": path for path in sorted(out.glob("*.png"))}


def _in_background(body: Callable[[], None]) -> Future[None]:
    """Run in a daemon thread: an interrupt of the main thread does not wait for it."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(body())
        except BaseException as error:  # handed to whoever asks for the result
            future.set_exception(error)

    threading.Thread(target=run, name="train-group", daemon=True).start()
    return future
