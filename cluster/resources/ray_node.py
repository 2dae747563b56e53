"""`python -m cluster.resources.ray_node OPTIONS`: one node of a Ray cluster in the foreground (`ray start`).

Ray's files are in a private folder below /tmp (a Unix socket's path has at most 107 bytes), which is removed
at the end. SIGTERM ends every process of the node, with SIGKILL after some seconds: none outlives it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from types import FrameType

import psutil

_TERMINATION_SECONDS = 3.0  # Ray itself would drain for half a minute


def main(options: list[str]) -> int:
    """Run the node until it ends or this process gets SIGTERM; return the exit code."""
    folder = tempfile.mkdtemp(prefix="wv-", dir="/tmp")
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    command = [ray, "start", *options, f"--temp-dir={folder}", "--disable-usage-stats", "--block"]
    node = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        return node.wait()
    finally:
        _terminate(psutil.Process().children(recursive=True))
        shutil.rmtree(folder, ignore_errors=True)


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _terminate(processes: list[psutil.Process]) -> None:
    """Send SIGTERM, and SIGKILL to processes that do not end in time."""
    for process in processes:
        _send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, _TERMINATION_SECONDS)
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, _TERMINATION_SECONDS)


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it has ended by itself


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
