"""One Ray session per command: a private Ray on this machine, or a connection to an existing cluster.

The environment of its processes: `cluster.resources.environment`.
"""

from __future__ import annotations

import logging
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.config import ClusterConfig
from cluster.failures import CommandFailedError
from cluster.resources.environment import session_environment, worker_environment
from cluster.resources.placement import Node
from cluster.resources.private_ray import (
    ended_process,
    job_config,
    private_ray,
    temporary_folder,
    undisturbed_start,
)
from cluster.resources.ray_use import RayUse, ray_is_in_use
from cluster.resources.run_resources import RunResources, check_fits
from cluster.signals import exit_on_signals, signals_ignored
from data.errors import InputError, first_line


@dataclass(frozen=True, slots=True)
class Session:
    """A Ray session that is open.

    Attributes:
        folder: Private temporary folder, removed with the session.
        resources: Resources that the session was opened for.
        start_timeout: Seconds within which the processes of a training must have started.
        existing_cluster: Whether it has joined an existing cluster, whose nodes may leave and return.
        use: Calls of Ray in other threads than the one that closes the session.
    """

    folder: Path
    resources: RunResources
    start_timeout: float
    existing_cluster: bool = False
    use: RayUse = field(default_factory=RayUse)

    def check_ray(self) -> None:
        """Refuse to go on without a process of the private Ray that has ended.

        Ray itself would notice after up to a minute, and without its GCS end the command without a word of
        ours.

        Raises:
            CommandFailedError: `gcs_server` or `raylet` has ended.
        """
        if not self.existing_cluster and (name := ended_process()):
            raise CommandFailedError(
                f"Ray's {name} has ended (killed, or out of memory), and with it Ray; repeat the command: it "
                "resumes"
            )

    def nodes(self) -> list[Node]:
        """The machines that are alive in Ray now, named by Ray's node ids."""
        import ray

        with self.use.call():
            nodes = ray.nodes()
        return [
            Node(node["NodeID"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
            for node in nodes
            if node["Alive"]
        ]


@contextmanager
def open_session(cluster: ClusterConfig, resources: RunResources) -> Iterator[Session]:
    """Start a private Ray (or join an existing one) for the length of a `with` block.

    Afterwards no process of a private Ray is left. SIGTERM ends the block like ctrl-C does, unless the caller
    has a handler of its own.

    Raises:
        InputError: The existing cluster cannot be reached, or offers too little; there is no folder for a
            private one; or Ray cannot be loaded with the settings in the environment.
        CommandFailedError: A private Ray does not start, or Ray fails in the block.
    """
    address = cluster.address
    opened = private_ray(cluster, resources) if address is None else _joined_cluster(address, resources)
    with exit_on_signals(), session_environment(cluster), opened as folder:
        from ray.exceptions import RayError  # Ray reads the environment when it is imported

        session = Session(folder, resources, cluster.start_timeout, existing_cluster=address is not None)
        try:
            yield session
        except RayError as error:
            raise CommandFailedError(
                f"Ray failed ({type(error).__name__}: {first_line(error)}); repeat the command: it resumes"
            ) from error
        finally:
            with signals_ignored():
                session.use.close()


@contextmanager
def _joined_cluster(address: str, resources: RunResources) -> Iterator[Path]:
    """Connect to the Ray cluster at `address`; yield a temporary folder of this machine."""
    import ray

    folder = temporary_folder()
    try:
        with undisturbed_start():
            _connect(address, resources)
        offered = ray.cluster_resources()
        check_fits(resources, offered.get("CPU", 0), offered.get("GPU", 0), f"Ray at {address}")
        yield folder
    finally:
        with signals_ignored():
            if not ray_is_in_use():
                ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _connect(address: str, resources: RunResources) -> None:
    import ray

    try:
        _check_reachable(address)
        ray.init(
            address=address,
            job_config=job_config(),
            runtime_env={"env_vars": worker_environment(resources, existing_cluster=True)},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except OSError as error:  # Ray's ConnectionError is one
        raise InputError(
            f"cluster.address={address}: no Ray cluster answers there ({first_line(error)}); "
            "start one with `ray start --head`, or leave cluster.address out"
        ) from error
    except Exception as error:  # Ray raises many classes: another version, another token, a malformed address
        raise InputError(
            f"cluster.address={address}: Ray refuses to join this cluster ({first_line(error)}); "
            "take the version of Ray that runs there, or leave cluster.address out"
        ) from error


def _check_reachable(address: str) -> None:
    """Connect to `host:port` once, since Ray itself would retry for minutes.

    Raises:
        OSError: The connection was refused or timed out.
    """
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()
