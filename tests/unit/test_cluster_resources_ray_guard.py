"""The guard of a private Ray: its processes and its files go with the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.resources import ray_guard
from tests.support.waiting import HANG_SECONDS, wait_until

# A command that starts a guard, and two marked processes that ignore SIGTERM, one in a session of its own.
COMMAND = r"""
import os, subprocess, sys
guard, folder, pids = sys.argv[1:]
process = subprocess.Popen([sys.executable, "-I", "-S", guard, folder, "MARK"], stdin=subprocess.PIPE,
                           start_new_session=True)
worker = 'trap "" TERM; echo $$ >> "$0"; while :; do sleep 0.1; done'
environment = {**os.environ, "MARK": folder}
for own_session in (True, False):
    subprocess.Popen(["bash", "-c", worker, pids], env=environment, start_new_session=own_session)
subprocess.Popen(["bash", "-c", worker, pids + ".other"], env={**os.environ, "MARK": folder + "x"})
sys.stdin.readline()
process.communicate(b"the command ends")
"""


@pytest.fixture
def command(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    folder, pids = tmp_path / "ray", tmp_path / "pids"
    (folder / "logs").mkdir(parents=True)
    arguments = [sys.executable, "-c", COMMAND, ray_guard.__file__, str(folder), str(pids)]
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(started(pids)) == 2 and len(started(Path(f"{pids}.other"))) == 1)
        yield process
    finally:
        process.kill()
        process.wait()
        for pid in started(pids) + started(Path(f"{pids}.other")):
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


def started(pids: Path) -> list[int]:
    return [int(pid) for pid in pids.read_text().split()] if pids.exists() else []


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("killed", [True, False])
def test_nothing_outlives_the_command_however_it_ends(
    killed: bool, command: subprocess.Popen[str], tmp_path: Path
) -> None:
    pids = started(tmp_path / "pids")
    if killed:
        command.send_signal(signal.SIGKILL)
    else:
        command.communicate("\n", timeout=HANG_SECONDS)
    wait_until(lambda: not (tmp_path / "ray").exists())  # the guard's last act
    assert [pid for pid in pids if is_running(pid)] == []
    (other,) = started(Path(f"{tmp_path / 'pids'}.other"))
    assert is_running(other), "a process of another session was ended"


def test_nothing_is_ended_while_the_command_runs(command: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        command.wait(2.5)  # longer than the guard waits at a time
    assert (tmp_path / "ray").exists()
    assert all(is_running(pid) for pid in started(tmp_path / "pids"))
