"""`python -m cluster.resources.ray_node OPTIONS`: one node of a Ray cluster in the foreground (`ray start`).

Ray's files are in a private folder (`cluster.resources.private_ray`), which is removed at the end. SIGTERM
ends every process of the node, with SIGKILL after some seconds: none outlives it, not even one that starts
meanwhile or has left its parent.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
from types import FrameType

import psutil

from cluster.resources.environment import program_environment
from cluster.resources.private_ray import temporary_folder
from data.errors import InputError

_TERMINATION_SECONDS = 3.0  # Ray itself would drain for half a minute
_KILL_ROUNDS = 20
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main(options: list[str]) -> int:
    """Run the node until it ends or this process gets SIGTERM; return the exit code.

    Raises:
        InputError: There is no folder for Ray's files.
    """
    folder = temporary_folder()
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    # Processes whose parent ends become children of this one, where they can be found.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    unused = [
        "--include-log-monitor=false",
        "--no-monitor",
        "--disable-usage-stats",
    ]  # nobody reads what they say
    command = [ray, "start", *options, f"--temp-dir={folder}", *unused, "--block"]
    node = subprocess.Popen(command, env=program_environment(os.environ))
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        return node.wait()
    finally:
        _terminate_descendants()
        shutil.rmtree(folder, ignore_errors=True)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _terminate_descendants() -> None:
    """Send SIGTERM, then SIGKILL until no process is left: some may start while others end."""
    _signal_and_wait(signal.SIGTERM)
    for _ in range(_KILL_ROUNDS):
        if not _signal_and_wait(signal.SIGKILL):
            return


def _signal_and_wait(number: int) -> int:
    """Send a signal to all descendants and wait some seconds for their end; the number of processes."""
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue  # it has ended by itself
    psutil.wait_procs(processes, _TERMINATION_SECONDS)
    return len(processes)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as refusal:
        sys.exit(f"error: {refusal}")
