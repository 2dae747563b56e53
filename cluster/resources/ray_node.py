"""`python -m cluster.resources.ray_node OPTIONS`: one node of a Ray cluster in the foreground (`ray start`).

Ray's files lie in a private folder below /tmp that goes with it (a Unix socket's path has at most 107
bytes). On TERM every process of the node is ended, the hard way after some seconds: none outlives it.
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

_SECONDS_TO_END = 3.0  # Ray itself would drain for half a minute


def main(options: list[str]) -> int:
    """Run the node until it ends or this process is told to; the exit code."""
    folder = tempfile.mkdtemp(prefix="wv-", dir="/tmp")
    ray = os.path.join(os.path.dirname(sys.executable), "ray")
    command = [ray, "start", *options, f"--temp-dir={folder}", "--disable-usage-stats", "--block"]
    node = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, _unwind)
    try:
        return node.wait()
    finally:
        _end(psutil.Process().children(recursive=True))
        shutil.rmtree(folder, ignore_errors=True)


def _unwind(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _end(processes: list[psutil.Process]) -> None:
    """TERM, and KILL for those that do not go."""
    for process in processes:
        _send(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(processes, _SECONDS_TO_END)
    for process in alive:
        _send(process, signal.SIGKILL)
    psutil.wait_procs(alive, _SECONDS_TO_END)


def _send(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return  # it has gone by itself


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
