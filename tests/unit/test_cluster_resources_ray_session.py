from __future__ import annotations

import importlib
import os
import socket

import pytest

from cluster.config import RootConfig
from cluster.resources.ray_session import open_session, worker_environment
from cluster.resources.run_resources import plan_resources
from data.errors import InputError


def test_an_address_without_a_ray_cluster_is_refused_at_once() -> None:
    importlib.import_module("ray")  # sets a variable of its own
    before = dict(os.environ)
    with socket.socket() as bound:  # bound, but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        config = RootConfig()
        config.cluster.address = f"127.0.0.1:{bound.getsockname()[1]}"
        resources = plan_resources(config, gpus_available=0)
        with (
            pytest.raises(InputError, match=r"no Ray cluster answers there .*refused.*ray start --head"),
            open_session(config.cluster, resources),
        ):
            pass
    assert dict(os.environ) == before


def test_ranks_on_cpus_do_not_look_for_gpus() -> None:
    config = RootConfig()
    on_cpu = worker_environment(plan_resources(config, gpus_available=0))
    assert on_cpu["DS_ACCELERATOR"] == "cpu"
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert "DS_ACCELERATOR" not in worker_environment(plan_resources(config, gpus_available=1))
