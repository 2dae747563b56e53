"""One Ray session per command: a private Ray on this machine, or a connection to an existing cluster.

Environment of a private session:

| variable | value | why |
|---|---|---|
| RAY_USAGE_STATS_ENABLED | 0 | nothing is sent anywhere |
| RAY_AUTH_TOKEN | a fresh secret (private) | Ray would keep one in the home folder, which may be read-only |
| RAY_TRAIN_HEALTH_CHECK_INTERVAL_S | 0.5 | a failed rank is noticed within half a second |
| RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S | cluster.start_timeout | imports are slow on a busy machine |
| RAY_TRAIN_METRICS_ENABLED | 0 | no Prometheus exporter |
| RAY_TRAIN_ENABLE_PREEMPTION_WATCHER | 0 (private) | one machine is not preempted node by node |
| RAY_TRAIN_ENABLE_PRINT_PATCH | 0 | print goes where stdout goes |
| RAY_CHDIR_TO_TRIAL_DIR | 0 | relative paths mean the same in every process |
| TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S | 5 | peers of a failed rank hang in their collective operation |
| OMP_NUM_THREADS | 1 | several ranks share the cores |
| TORCH_NCCL_ENABLE_TIMING | 1 | measures a rank's own time of a step (pretrain.telemetry.waits) |
| DS_ACCELERATOR, CUDA_VISIBLE_DEVICES | cpu, "" (runs on CPUs) | DeepSpeed does not look for CUDA |
| TORCHDYNAMO_DISABLE | 1 (runs on CPUs) | saves a second of imports per rank |
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from cluster.config import ClusterConfig
from cluster.resources.placement import Node
from cluster.resources.run_resources import RunResources, check_fits
from data.errors import InputError
from pretrain.logs import LEVEL_VARIABLE

_DRIVER_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
# Ray puts its sockets below its temporary folder, and a Unix socket's path has at most 107 bytes.
_LONGEST_TEMPORARY_FOLDER = 40
_PRIVATE_TOKEN = secrets.token_hex(32)  # one per process: Ray reads it only once


@dataclass(frozen=True, slots=True)
class Session:
    """A Ray session that is open.

    Attributes:
        folder: Private temporary folder, removed with the session.
        resources: Resources that the session was opened for.
        existing_cluster: Whether it has joined an existing cluster, whose nodes may leave and return.
    """

    folder: Path
    resources: RunResources
    existing_cluster: bool = False

    def nodes(self) -> list[Node]:
        """The machines that are alive in Ray now, named by Ray's node ids."""
        import ray

        return [
            Node(node["NodeID"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
            for node in ray.nodes()
            if node["Alive"]
        ]


@contextmanager
def open_session(cluster: ClusterConfig, resources: RunResources) -> Iterator[Session]:
    """Start a private Ray (or join an existing one) for the length of a `with` block.

    Afterwards no process of a private Ray is left. SIGTERM ends the block like ctrl-C does.

    Raises:
        InputError: The existing cluster cannot be reached, or offers too little.
    """
    environment = dict(_DRIVER_ENVIRONMENT)
    environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(cluster.start_timeout)
    if cluster.address is None:
        environment |= {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_AUTH_TOKEN": _PRIVATE_TOKEN}
    with _environment(environment), _temporary_folder() as folder:
        import ray

        try:
            _connect(cluster, resources, folder)
            with _exit_on_sigterm():  # after Ray, which sets a handler of its own
                yield Session(folder, resources, existing_cluster=cluster.address is not None)
        finally:
            ray.shutdown()


def worker_environment(resources: RunResources) -> dict[str, str]:
    """Environment variables of every process that Ray starts for this command."""
    environment = {
        name: os.environ[name]
        for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LIBERO_ASSETS", "LIBERO_CONFIG_PATH", LEVEL_VARIABLE)
        if name in os.environ
    }
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    environment["TORCH_NCCL_ENABLE_TIMING"] = os.environ.get("TORCH_NCCL_ENABLE_TIMING", "1")
    if resources.gpus_per_rank == 0:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    return environment


def _connect(cluster: ClusterConfig, resources: RunResources, folder: Path) -> None:
    import ray

    runtime_env = {"env_vars": worker_environment(resources)}
    if cluster.address is not None:
        try:
            _check_reachable(cluster.address)
            ray.init(
                address=cluster.address,
                runtime_env=runtime_env,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except OSError as error:  # Ray's ConnectionError is one
            raise InputError(
                f"cluster.address={cluster.address}: no Ray cluster answers there ({_first_line(error)}); "
                "start one with `ray start --head`, or leave cluster.address out"
            ) from error
        offered = ray.cluster_resources()
        check_fits(resources, offered.get("CPU", 0), offered.get("GPU", 0), f"Ray at {cluster.address}")
        return
    ray.init(
        num_cpus=cluster.cpus or resources.cpus,
        num_gpus=resources.gpus,
        include_dashboard=False,
        object_store_memory=cluster.object_store_megabytes * 2**20,
        runtime_env=runtime_env,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
        # Actors never use a prestarted worker: starting some would only cost time.
        _system_config={"enable_worker_prestart": False, "prestart_worker_first_driver": False},
    )


def _check_reachable(address: str) -> None:
    """Connect to `host:port` once, since Ray itself would retry for minutes.

    Raises:
        OSError: The connection was refused or timed out.
    """
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set; remove them afterwards."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    base = Path(tempfile.gettempdir())
    if len(str(base)) > _LONGEST_TEMPORARY_FOLDER:
        base = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix="wv-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM unwind the stack, so that the session is closed; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind_stack(number: int, frame: FrameType | None) -> None:
        print("ended by SIGTERM; the same command resumes from what is already written", file=sys.stderr)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, unwind_stack)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
