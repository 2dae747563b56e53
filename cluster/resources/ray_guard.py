"""`python ray_guard.py FOLDER VARIABLE`: ends a private Ray with its command, however that ends.

Started by `cluster.resources.private_ray` in a session of its own, as a plain file: it imports nothing but
the standard library. It waits until the command writes to its standard input or has ended, SIGKILL included.
Then it kills every process whose environment has VARIABLE=FOLDER, which all processes of that Ray inherit,
and removes the folder.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress

_POLL_SECONDS = 1.0
_KILL_SECONDS = 30.0  # a process that waits for a device may not end


def main(folder: str, variable: str) -> None:
    """Wait for the end of the command, then end its Ray and remove its files."""
    command = os.getppid()
    while os.getppid() == command and not select.select([0], [], [], _POLL_SECONDS)[0]:
        pass
    mark = f"{variable}={folder}".encode()
    deadline = time.monotonic() + _KILL_SECONDS
    while (pids := _marked(mark)) and time.monotonic() < deadline:
        for pid in pids:
            _kill(pid)
        time.sleep(0.02)
    shutil.rmtree(folder, ignore_errors=True)


def _marked(mark: bytes) -> list[int]:
    """Living processes whose environment has the mark; that of a zombie is empty."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal() and mark in _environment(name)]


def _environment(pid: str) -> list[bytes]:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return []


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
