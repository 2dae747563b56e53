"""What the tests of clusters start once a worker, and Ray's time limits."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.support.ray_workers import forked_ray_workers, ray_worker_server
from tests.support.virtual_slurm import VirtualSlurm, missing, virtual_slurm

# Ray's own limits, for a machine that is busy with other things.
os.environ.update(
    RAY_worker_register_timeout_seconds="900",
    RAY_gcs_rpc_server_connect_timeout_s="30",
    RAY_agent_register_timeout_ms="900000",
    RAY_health_check_timeout_ms="300000",
)


@pytest.fixture(scope="session")
def ray_workers() -> Iterator[str]:
    """The server that forks Ray's workers, started once a worker."""
    with ray_worker_server() as server:
        yield server


@pytest.fixture(scope="module")
def preloaded_workers(ray_workers: str) -> Iterator[None]:
    """Ray's workers are forked from a process that has their imports (`usefixtures`)."""
    with forked_ray_workers(ray_workers):
        yield


@pytest.fixture(scope="session")
def slurm_of_four_nodes() -> Iterator[VirtualSlurm]:
    """A Slurm that all tests of jobs in this process use."""
    if reason := missing():
        pytest.skip(f"no virtual Slurm here: {reason}")
    with virtual_slurm(4) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_of_four_nodes: VirtualSlurm) -> Iterator[VirtualSlurm]:
    """The worker's Slurm, idle before the test and again after it."""
    yield slurm_of_four_nodes
    slurm_of_four_nodes.reset()
