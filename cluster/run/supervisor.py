"""One training run from start to end: its ranks, and an evaluation of every checkpoint that is due."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import replace

from rich.console import Console

from cluster.config import RootConfig
from cluster.resources.ray_session import open_session
from cluster.resources.run_resources import RunResources
from cluster.run.checkpoint_evaluations import CheckpointEvaluations
from cluster.run.evaluation_group import Evaluate, EvaluationGroup
from cluster.run.preflight import check_run
from cluster.run.run_reporter import RunReporter
from cluster.run.stop_request import StopRequest, stop_on_signals
from cluster.run.training import Train, Training
from pretrain.checkpoint.location import checkpoint_location
from pretrain.checks import check_training
from pretrain.faults.exit_codes import PreemptedError
from pretrain.run_folder import RunFolder
from pretrain.run_lock import exclusive_access
from pretrain.run_start import open_run
from pretrain.settings import to_mapping
from pretrain.telemetry.progress import ProgressDisplay
from pretrain.telemetry.wandb_sink import WandbSink

_POLL_SECONDS = 0.25


def supervise(
    config: RootConfig,
    console: Console,
    train: Train,
    evaluate: Evaluate,
    on_trained: Callable[[], None] = lambda: None,
) -> RunFolder:
    """Train to the last step and evaluate checkpoints beside it; return the run folder.

    Training never waits for an evaluation; the command ends when the last evaluation has. A training that
    fails is restarted from its newest checkpoint, as often as `cluster.restarts` allows.

    Args:
        config: The run.
        console: Where progress is shown.
        train: Runs in every rank.
        evaluate: Runs in a process of its own for every checkpoint that is due.
        on_trained: Called once when the training has ended; evaluations may still run.

    Raises:
        InputError: The settings, the run folder or the machine do not allow the run.
        PreemptedError: It was stopped by SIGTERM or SIGUSR1; the same command resumes it.
        CommandFailedError: A rank or an evaluation failed.
    """
    check_training(config)
    resources = check_run(config)
    config = replace(config, checkpointing=replace(config.checkpointing, await_evaluation=config.eval.every))
    folder = RunFolder.of(config.run)
    with exclusive_access(folder):
        _supervise_alone(config, console, folder, resources, train, evaluate, on_trained)
    return folder


def _supervise_alone(
    config: RootConfig,
    console: Console,
    folder: RunFolder,
    resources: RunResources,
    train: Train,
    evaluate: Evaluate,
    on_trained: Callable[[], None],
) -> None:
    """`supervise` while no other command can use the folder."""
    start = open_run(config, folder)
    checkpoints = checkpoint_location(config.checkpointing, folder)
    with (
        closing(WandbSink(folder.path, config.run.name, config.telemetry, to_mapping(config))) as wandb,
        open_session(config.cluster, resources) as session,
        ProgressDisplay(console) as display,
        stop_on_signals(folder.stop_request) as stop,  # after the session, which sets a handler of its own
    ):
        reporter = RunReporter(folder, display, wandb, checkpoints.latest() or 0, config.last_step)
        group = EvaluationGroup(folder.logs, evaluate)
        evaluations = CheckpointEvaluations(config, folder, checkpoints, group, reporter)
        training = Training(config, session, folder, start, train, stop, checkpoints)
        reporter.starting(resources.ranks)
        run_to_end(training, evaluations, reporter, stop, on_trained, session.check_ray)


def run_to_end(
    training: Training,
    evaluations: CheckpointEvaluations,
    reporter: RunReporter,
    stop: StopRequest,
    on_trained: Callable[[], None],
    check_ray: Callable[[], None] = lambda: None,
) -> None:
    """Run until the training and every evaluation have ended.

    Args:
        training: Runs in a thread.
        evaluations: Of its checkpoints.
        reporter: Receives metrics and events.
        stop: Ends the wait for evaluations.
        on_trained: Called once when the training has ended.
        check_ray: Raises where Ray has ended.

    Raises:
        PreemptedError: The command was stopped.
        CommandFailedError: The training or an evaluation failed, or Ray has ended.
    """

    def poll(refresh: bool = False) -> None:
        reporter.forward_metrics()
        for event in training.take_events():
            reporter.event(event)
        check_ray()  # before the training's result: its failure follows from that, with another message
        evaluations.poll(refresh)

    training_result = _run_in_thread(training.run)
    while not training_result.done():
        wait([training_result], _POLL_SECONDS)
        poll()
        training.request_growth()
    poll()
    if training_result.exception() is not None:
        evaluations.report_pending()
    training_result.result()  # raises the exception of the training
    poll(refresh=True)
    on_trained()
    while evaluations.pending:
        if stop.wait(_POLL_SECONDS):
            evaluations.report_pending()
            raise PreemptedError("stopped on request; the training had ended, its evaluations had not")
        poll()
    evaluations.raise_first_failure()


def _run_in_thread(body: Callable[[], None]) -> Future[None]:
    """Run in a daemon thread: an interrupt of the main thread does not wait for it."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            future.set_result(body())
        except BaseException as error:  # raised again by `Future.result`
            future.set_exception(error)

    threading.Thread(target=run, name="train-group", daemon=True).start()
    return future
