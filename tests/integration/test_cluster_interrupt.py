"""However a command is ended, nothing that it started outlives it; its ranks are asked for a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from cluster.config import RootConfig
from cluster.failures import CommandFailedError
from cluster.resources.private_ray import NEEDED_PROCESSES
from cluster.run.supervisor import supervise
from cluster.run.training import Train
from cluster.run.worker_entry_points import evaluate_checkpoint
from cluster.signals import exit_on_signals
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import EXIT_PREEMPTED, PreemptedError
from pretrain.run_folder import RunFolder
from pretrain.run_start import RunStart
from tests.support.waiting import HANG_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]


def train_for_ever(config: TrainingConfig, start: RunStart) -> None:
    Path(config.run.dir, "training").touch()
    threading.Event().wait()


def train_until_stopped(config: TrainingConfig, start: RunStart) -> None:
    Path(config.run.dir, "training").touch()
    wait_until(RunFolder.of(config.run).stop_request.exists)
    raise PreemptedError("stopped on request, with a checkpoint of step 7")


def body(train: Train = train_for_ever) -> None:
    config = RootConfig()
    config.run.name, config.run.dir = "r", os.getcwd()
    config.cluster.gpus_per_rank, config.cluster.start_timeout = 0, int(HANG_SECONDS)
    supervise(config, Console(), train, evaluate_checkpoint)


def stopping_body() -> None:
    with pytest.raises(PreemptedError, match="with a checkpoint of step 7"):
        body(train_until_stopped)
    sys.exit(EXIT_PREEMPTED)


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


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A place for Ray's sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield Path(folder)


def start(folder: Path, temporary: Path, program: str = "body") -> subprocess.Popen[str]:
    """Start a command, the first of its process group."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests.integration.test_cluster_interrupt import *; {program}()"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(number: signal.Signals, tmp_path: Path, short_folder: Path) -> None:
    process = start(tmp_path, short_folder)
    try:
        wait_for(tmp_path / "training", process)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) > 3
        process.send_signal(number)
        if number == signal.SIGTERM:  # the first asks for a checkpoint, which this training never writes
            wait_for(tmp_path / "r" / ".stop", process)
            process.send_signal(number)
        said = process.communicate(timeout=HANG_SECONDS)[0]
    finally:
        process.kill()
    assert process.returncode == {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 128 + signal.SIGTERM}[number]
    assert number == signal.SIGINT or "ended by SIGTERM" in said
    psutil.wait_procs(children, timeout=HANG_SECONDS)
    wait_until(lambda: alive(children) == [])
    assert list(short_folder.glob("wv-*")) == []


def test_sigterm_to_the_whole_process_group_ends_with_a_checkpoint(
    tmp_path: Path, short_folder: Path
) -> None:
    """As `timeout` and process managers send it: Ray's own processes do not get it."""
    process = start(tmp_path, short_folder, "stopping_body")
    try:
        wait_for(tmp_path / "training", process)
        children = psutil.Process(process.pid).children(recursive=True)
        names = {child.name() for child in children if os.getsid(child.pid) == process.pid}
        assert not names & {"gcs_server", "raylet"}
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=HANG_SECONDS)[0]
    finally:
        process.kill()
    assert process.returncode == EXIT_PREEMPTED, said
    assert "SIGTERM: a checkpoint follows at the next step boundary" in said
    assert "GCS" not in said
    wait_until(lambda: alive(children) == [])
    assert list(short_folder.iterdir()) == []


def test_ctrl_c_pressed_again_and_again_leaves_nothing(tmp_path: Path, short_folder: Path) -> None:
    process = start(tmp_path, short_folder)
    try:
        wait_for(tmp_path / "training", process)
        children = psutil.Process(process.pid).children(recursive=True)

        def interrupt() -> bool:
            os.killpg(process.pid, signal.SIGINT)
            return process.poll() is not None

        wait_until(interrupt)
        process.communicate(timeout=HANG_SECONDS)
    finally:
        process.kill()
    assert process.returncode != 0
    wait_until(lambda: list(short_folder.iterdir()) == [])
    wait_until(lambda: alive(children) == [])


def body_in_a_line() -> None:
    try:
        body()
    except CommandFailedError as error:
        sys.exit(f"error: {error}")


@pytest.mark.parametrize("name", NEEDED_PROCESSES)
def test_a_process_of_ray_that_is_killed_is_named_and_ends_everything(
    name: str, tmp_path: Path, short_folder: Path
) -> None:
    process = start(tmp_path, short_folder, "body_in_a_line")
    try:
        wait_for(tmp_path / "training", process)
        children = psutil.Process(process.pid).children(recursive=True)
        next(each for each in children if each.name() == name).kill()
        said = process.communicate(timeout=HANG_SECONDS)[0]
    finally:
        process.kill()
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith(f"error: Ray's {name} has ended (killed, or out of memory)"), said
    wait_until(lambda: not alive(children))
    wait_until(lambda: not list(short_folder.glob("wv-*")))


def test_nothing_outlives_a_command_that_is_killed(tmp_path: Path, short_folder: Path) -> None:
    process = start(tmp_path, short_folder)
    try:
        wait_for(tmp_path / "training", process)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.communicate()
    wait_until(lambda: list(short_folder.glob("wv-*")) == [])
    wait_until(lambda: alive(children) == [])


def test_sigterm_while_ray_starts_ends_a_command_with_a_line(tmp_path: Path, short_folder: Path) -> None:
    process = start(tmp_path, short_folder, "starting_ray")
    try:
        said = process.communicate(timeout=HANG_SECONDS)[0]
    finally:
        process.kill()
    assert "ended by SIGTERM; the same command resumes from what is already written" in said
    assert process.returncode == 128 + signal.SIGTERM
    wait_until(lambda: list(short_folder.glob("wv-*")) == [])


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: path.exists() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
