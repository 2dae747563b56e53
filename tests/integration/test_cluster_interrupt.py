"""However a command is ended, nothing that it started outlives it; its ranks are asked for a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.resources.private_ray import NEEDED_PROCESSES
from pretrain.faults.exit_codes import EXIT_PREEMPTED
from tests.support.waiting import HANG_SECONDS, wait_until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A place for Ray's sockets, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        yield Path(folder)


def start(folder: Path, temporary: Path, program: str = "body") -> subprocess.Popen[str]:
    """Start a command of `tests.support.interrupted_commands`, the first of its process group."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from tests.support.interrupted_commands import {program}; {program}()"],
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
