from __future__ import annotations

import os
import socket

import pytest

from cluster.config import RootConfig
from cluster.resources.placement import place
from cluster.resources.ray_session import open_session, worker_environment
from data.errors import InputError


def test_an_address_where_nobody_answers_is_one_error_at_once() -> None:
    with socket.socket() as bound:  # bound, but not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        config = RootConfig()
        config.cluster.address = f"127.0.0.1:{bound.getsockname()[1]}"
        placement = place(config, gpus_found=0)
        with (
            pytest.raises(InputError, match=r"no Ray cluster answers there .*refused.*ray start --head"),
            open_session(config.cluster, placement),
        ):
            pass
    assert "RAY_TRAIN_METRICS_ENABLED" not in os.environ


def test_ranks_on_cpus_do_not_look_for_gpus() -> None:
    config = RootConfig()
    on_cpu = worker_environment(place(config, gpus_found=0))
    assert on_cpu["DS_ACCELERATOR"] == "cpu"
    assert on_cpu["CUDA_VISIBLE_DEVICES"] == ""
    assert "DS_ACCELERATOR" not in worker_environment(place(config, gpus_found=1))
