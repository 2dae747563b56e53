"""Lets Ray fork its workers from a process that has imported what they need.

A worker of Ray imports torch and the trainer for three seconds, at each start of a training. Ray looks up
the interpreter of its workers in the runtime environment (`py_executable`): here a small program that lets a
server fork the worker. All else is Ray's own. Ray itself is not preloaded: a process that has imported it
cannot be forked.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until

_PRELOADED = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.original_muon",
    "pretrain.trainer",
    "tests.integration.test_cluster_lost_node",
    "tests.integration.test_cluster_prepare_group",
    "tests.integration.test_cluster_storage",
    "tests.integration.test_cluster_supervisor",
    "tests.integration.test_cluster_train_group",
)
_ROOT = Path(__file__).resolve().parents[2]
_SOCKET = "WORLDVLA_TEST_RAY_WORKERS"
_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}


@contextmanager
def ray_worker_server() -> Iterator[str]:
    """The server that forks Ray's workers; the path of its socket."""
    with tempfile.TemporaryDirectory(prefix="wv-workers-", dir="/tmp") as folder:
        path = f"{folder}/socket"
        environment = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": str(_ROOT)}
        command = [sys.executable, "-m", "tests.support.ray_workers", path, str(os.getpid())]
        server = subprocess.Popen(command, env=environment)
        try:
            wait_until(lambda: os.path.exists(path) or server.poll() is not None)
            assert server.poll() is None
            yield path
        finally:
            server.kill()
            server.wait()


@contextmanager
def forked_ray_workers(server: str) -> Iterator[None]:
    """Let every Ray that this process opens within the `with` block fork its workers.

    Not beyond it: on a virtual node, which has process numbers of its own, they would be elsewhere.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_SOCKET, server)
        patch.setenv("RAY_RUNTIME_ENV_HOOK", "tests.support.ray_workers.with_preloaded_python")
        yield


def with_preloaded_python(runtime_environment: dict[str, Any] | None) -> dict[str, Any]:
    """Ray's hook: the runtime environment of a session, changed."""
    program = Path(__file__).with_name("preloaded_python.py")
    interpreter = f"{sys.executable} -I -S {program} {os.environ[_SOCKET]}"
    return {**(runtime_environment or {}), "py_executable": interpreter}


def _serve(path: str, tests: int) -> None:
    """Fork a process for each connection, as long as the tests live that started this one."""
    for name in _PRELOADED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".new")
        listener.listen(64)
        listener.settimeout(1.0)
        os.rename(path + ".new", path)
        while os.getppid() == tests:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                _become(connection)
            connection.close()


def _become(connection: socket.socket) -> None:
    """Go on as the program that connected would: its arguments, environment, folder and files."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as stream:
        arguments, environment, folder = json.loads(stream.read(int.from_bytes(size, "little")))
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    _end_with(connection)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
    sys.exit(0)


def _end_with(connection: socket.socket) -> None:
    """Let the end of the program that connected kill this process: that one is in Ray's view the worker."""
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([connection], [], [], 0)[0]:  # it had ended before
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
