"""One Ray session per command: started private and small (or joined), ended by its own handle.

Environment of a private session:

| variable | value | why |
|---|---|---|
| RAY_USAGE_STATS_ENABLED | 0 | nothing is sent anywhere |
| RAY_AUTH_TOKEN | a fresh secret (private) | Ray would keep one in the home folder, which may be read-only |
| RAY_TRAIN_HEALTH_CHECK_INTERVAL_S | 0.5 | a failed rank is seen within half a second |
| RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S | cluster.start_timeout | imports are slow on a busy machine |
| RAY_TRAIN_METRICS_ENABLED | 0 | no Prometheus exporter |
| RAY_TRAIN_ENABLE_PREEMPTION_WATCHER | 0 (private) | one machine is not preempted node by node |
| RAY_TRAIN_ENABLE_PRINT_PATCH | 0 | print goes where stdout goes |
| RAY_CHDIR_TO_TRIAL_DIR | 0 | relative paths mean the same in every process |
| TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S | 5 | peers of a failed rank hang in their collective |
| OMP_NUM_THREADS | 1 | several ranks share the cores |
| TORCH_NCCL_ENABLE_TIMING | 1 | a rank's own time of a step is known (pretrain.telemetry.waits) |
| DS_ACCELERATOR, CUDA_VISIBLE_DEVICES | cpu, "" (runs on CPUs) | DeepSpeed does not look for CUDA |
| TORCHDYNAMO_DISABLE | 1 (runs on CPUs) | a second less to import per rank |
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
from cluster.resources.node_assignment import Node
from cluster.resources.placement import Placement, check_fits
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
_PRIVATE_TOKEN = secrets.token_hex(32)  # one a process: Ray reads it only once


@dataclass(frozen=True, slots=True)
class Session:
    """A Ray session that is open.

    Attributes:
        folder: Private temporary folder; it goes with the session.
        placement: The resources that the session was opened for.
        several_nodes: Whether it is of an existing cluster, whose nodes may come and go.
    """

    folder: Path
    placement: Placement
    several_nodes: bool = False

    def nodes(self) -> list[Node]:
        """The machines that Ray has now, by Ray's id of the node."""
        import ray

        return [
            Node(node["NodeID"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
            for node in ray.nodes()
            if node["Alive"]
        ]


@contextmanager
def open_session(cluster: ClusterConfig, placement: Placement) -> Iterator[Session]:
    """Start (or join) Ray for the length of a `with` block; afterwards no process of it is left.

    SIGTERM ends the block like ctrl-C does.

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
            _connect(cluster, placement, folder)
            with _terminate_like_interrupt():  # after Ray, which sets a handler of its own
                yield Session(folder, placement, several_nodes=cluster.address is not None)
        finally:
            ray.shutdown()


def worker_environment(placement: Placement) -> dict[str, str]:
    """Environment variables of every process that Ray starts for this command."""
    environment = {
        name: os.environ[name]
        for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LIBERO_ASSETS", "LIBERO_CONFIG_PATH", LEVEL_VARIABLE)
        if name in os.environ
    }
    environment["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    environment["TORCH_NCCL_ENABLE_TIMING"] = os.environ.get("TORCH_NCCL_ENABLE_TIMING", "1")
    if placement.gpus_per_rank == 0:
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
    return environment


def _connect(cluster: ClusterConfig, placement: Placement, folder: Path) -> None:
    import ray

    runtime_env = {"env_vars": worker_environment(placement)}
    if cluster.address is not None:
        try:
            _check_answers(cluster.address)
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
        check_fits(placement, offered.get("CPU", 0), offered.get("GPU", 0), f"Ray at {cluster.address}")
        return
    ray.init(
        num_cpus=cluster.cpus or placement.cpus,
        num_gpus=placement.gpus,
        include_dashboard=False,
        object_store_memory=cluster.object_store_megabytes * 2**20,
        runtime_env=runtime_env,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(folder),
        # Actors never take a prestarted worker: starting some would only cost time.
        _system_config={"enable_worker_prestart": False, "prestart_worker_first_driver": False},
    )


def _check_answers(address: str) -> None:
    """Knock at `host:port`: Ray itself would try for minutes (OSError when nobody answers)."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables that the user has not set; take them back afterwards."""
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
def _terminate_like_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that the session is closed; only possible in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def unwind(number: int, frame: FrameType | None) -> None:
        print("ended by SIGTERM; the same command goes on from what is already written", file=sys.stderr)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
