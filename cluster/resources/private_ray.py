"""A private Ray on this machine, for the length of a `with` block.

Each of its processes is in a session of its own: what is sent to the process group of the command (ctrl-C,
the SIGTERM of `timeout`) reaches the command alone. They end with the command, however that ends
(`cluster.resources.ray_guard`).
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig
from cluster.failures import CommandFailedError
from cluster.resources import ray_guard
from cluster.resources.environment import worker_environment
from cluster.resources.ray_use import ray_is_in_use
from cluster.resources.run_resources import RunResources
from cluster.signals import signals_ignored
from data.errors import InputError, first_line

# Ray puts its sockets below its temporary folder, and a Unix socket's path has at most 107 bytes.
_LONGEST_TEMPORARY_FOLDER = 40
_MARK = "WORLDVLA_RAY_FOLDER"  # in the environment of every process of this Ray
UNUSED_PROCESSES = ("start_log_monitor", "start_monitor", "start_api_server")  # methods of Ray's `Node`
NEEDED_PROCESSES = ("gcs_server", "raylet")  # as Ray's `Node` names them
_LOGS = ("raylet.err", "gcs_server.err", "raylet.out", "gcs_server.out")


@contextmanager
def private_ray(cluster: ClusterConfig, resources: RunResources) -> Iterator[Path]:
    """Start Ray; yield its temporary folder. Afterwards no process of it is left, and no folder.

    Raises:
        InputError: There is no folder for its files.
        CommandFailedError: It does not start.
    """
    import ray

    folder = temporary_folder()
    try:
        guard = _start_guard(folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        with undisturbed_start(own_session=True):
            _start(cluster, resources, folder)
        yield folder
    finally:
        with signals_ignored():
            if not ray_is_in_use():
                ray.shutdown()
            guard.communicate(b"the command ends\n")
            shutil.rmtree(folder, ignore_errors=True)  # where somebody has killed the guard


def ended_process() -> str | None:
    """Name of a process that has ended, and that this command's own Ray cannot be without; None: none."""
    from ray._private import worker

    node: Any = worker._global_node  # None: Ray is not this command's own, or is not started
    ended = dict(node.dead_processes()) if node is not None else {}
    return next((name for name in NEEDED_PROCESSES if name in ended), None)


@contextmanager
def undisturbed_start(own_session: bool = False) -> Iterator[None]:
    """Let `ray.init` leave the handler of SIGTERM alone for the length of a `with` block.

    From then on Ray never starts by itself: a thread that calls it once more while the command ends (ctrl-C)
    would start another Ray, which nobody ends.

    Ray's own handler is `sys.exit(15)`, without a word. Ray has no setting for this, nor for the sessions of
    its processes, nor against three of them that nobody here uses (the log monitor, which copies workers'
    output to the command, the autoscaler's monitor and the dashboard's server, which Ray starts without a
    dashboard too; about a second of CPU time each), nor against the page that
    it prints to standard output for each process that has died (its exception tells that, and the command
    says it in a line of its own): functions of its are replaced for the length of the block (a test reads
    Ray's source for these names).

    Args:
        own_session: Whether Ray is started: each of its processes gets a session of its own.
    """
    from ray._private import auto_init_hook, node, services, utils, worker

    auto_init_hook.enable_auto_connect = False
    popen: Any = services.ConsolePopen

    class OwnSession(popen):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options, start_new_session=True)

    replaced: list[tuple[Any, str, Any]] = [
        (utils, "set_sigterm_handler", lambda handler: None),
        (worker, "listen_error_messages", lambda connected, stopped: None),
    ]
    if own_session:
        replaced.append((services, "ConsolePopen", OwnSession))
        replaced += [(node.Node, name, lambda self, **options: None) for name in UNUSED_PROCESSES]
    before = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def job_config() -> Any:
    """Ray's settings of a job, without the caller's folder among the import paths of its processes.

    Ray puts the caller's folder first, unless the job has a working folder of its own: a package `data` or
    `eval` there would hide ours.
    """
    from ray.job_config import JobConfig

    class Job(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:
            return True

    return Job()


def _start(cluster: ClusterConfig, resources: RunResources, folder: Path) -> None:
    import ray

    before = os.environ.get(_MARK)  # of a Ray in which this command runs
    os.environ[_MARK] = str(folder)
    try:
        ray.init(
            address="local",
            num_cpus=cluster.cpus or resources.cpus,
            num_gpus=resources.gpus,
            include_dashboard=False,
            object_store_memory=cluster.object_store_megabytes * 2**20,
            job_config=job_config(),
            runtime_env={"env_vars": worker_environment(resources)},
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
            # Actors never use a prestarted worker: starting some would only cost time.
            _system_config={"enable_worker_prestart": False, "prestart_worker_first_driver": False},
        )
    except Exception as error:  # Ray raises many classes, and plain Exception too
        raise CommandFailedError(
            f"Ray does not start ({first_line(error)}{_last_log_line(folder)}); unset variables RAY_*, free "
            f"memory and space in {folder.parent}, or set TMPDIR to another folder; --debug shows more"
        ) from error
    finally:
        os.environ.pop(_MARK)
        if before is not None:
            os.environ[_MARK] = before


def _last_log_line(folder: Path) -> str:
    """The last line that Ray's processes have logged before they ended, as text to append; or nothing."""
    for name in _LOGS:
        for path in folder.glob(f"session_2*/logs/{name}"):
            lines = path.read_text("utf-8", "replace").split("\n")
            if words := [line.strip() for line in lines if line.strip()]:
                return f"; {name}: {words[-1][:200]}"
    return ""


def temporary_folder() -> Path:
    """Make a folder for Ray's files, whose path is short enough.

    Raises:
        InputError: There is no place for it.
    """
    try:
        base = Path(tempfile.gettempdir())
        if len(os.fsencode(base)) > _LONGEST_TEMPORARY_FOLDER:
            base = Path("/tmp")
        return Path(tempfile.mkdtemp(prefix="wv-", dir=base))
    except OSError as error:
        raise InputError(
            f"no folder for Ray's files ({error.strerror or error}); set TMPDIR to one that you may write "
            f"to, of at most {_LONGEST_TEMPORARY_FOLDER} characters: Ray's sockets have short paths"
        ) from error


def _start_guard(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", ray_guard.__file__, str(folder), _MARK],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,
    )
