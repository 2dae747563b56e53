"""Commands that tests end in the middle, each in a process of its own, which imports no test."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.config import RootConfig
from cluster.failures import CommandFailedError
from cluster.run.supervisor import supervise
from cluster.run.training import Train
from cluster.run.worker_entry_points import evaluate_checkpoint
from cluster.signals import exit_on_signals
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import EXIT_PREEMPTED, PreemptedError
from pretrain.run_folder import RunFolder
from pretrain.run_start import RunStart
from tests.support.waiting import HANG_SECONDS, wait_until


def train_for_ever(config: TrainingConfig, start: RunStart) -> None:
    Path(config.run.dir, "training").touch()
    threading.Event().wait()


def train_until_stopped(config: TrainingConfig, start: RunStart) -> None:
    Path(config.run.dir, "training").touch()
    wait_until(RunFolder.of(config.run).stop_request.exists)
    raise PreemptedError("stopped on request, with a checkpoint of step 7")


def body(train: Train = train_for_ever) -> None:
    """A training in the current folder; there is a file `training` as soon as it trains."""
    config = RootConfig()
    config.run.name, config.run.dir = "r", os.getcwd()
    config.cluster.gpus_per_rank, config.cluster.start_timeout = 0, int(HANG_SECONDS)
    supervise(config, Console(), train, evaluate_checkpoint)


def stopping_body() -> None:
    try:
        body(train_until_stopped)
    except PreemptedError as error:
        sys.exit(EXIT_PREEMPTED if "with a checkpoint of step 7" in str(error) else f"other: {error}")


def body_in_a_line() -> None:
    try:
        body()
    except CommandFailedError as error:
        sys.exit(f"error: {error}")


def starting_ray() -> None:
    """The command gets SIGTERM when Ray starts its second process, which is in the middle of `ray.init`."""
    from ray._private import services

    started = services.start_ray_process

    def start_process(command: list[str], *arguments: Any, **options: Any) -> Any:
        if "raylet" in command[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        return started(command, *arguments, **options)

    services.start_ray_process = start_process
    with exit_on_signals():
        body()
