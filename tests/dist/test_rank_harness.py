"""The harness that runs a function on several ranks."""

from __future__ import annotations

import os

import psutil
import pytest
import torch.distributed as dist

from tests.support.ranks import RankFailedError, run_ranks
from tests.support.waiting import wait_until


def uses_the_store_of_a_rank_that_has_returned() -> int:
    """Rank 0, which serves the store, returns at once; rank 1 reads from it when rank 0 runs no more."""
    dist.init_process_group("gloo")
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 0:
        store.set("process", str(os.getpid()))
        return 0
    process = psutil.Process(int(store.get("process")))
    wait_until(lambda: process.status() not in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP))
    store.set("answer", "there")
    assert store.get("answer") == b"there"
    dist.new_group([1])
    return process.pid


def test_a_rank_that_has_returned_stays_until_all_have() -> None:
    nothing, process = run_ranks(uses_the_store_of_a_rank_that_has_returned, 2)
    assert nothing == 0
    assert not psutil.pid_exists(process), "ranks end with their job"


def raises_on_one_rank() -> None:
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        raise ValueError("batch 3 is odd")
    dist.barrier()


def test_the_failure_of_one_rank_ends_those_that_wait_for_it() -> None:
    with pytest.raises(RankFailedError, match=r"(?s)rank 1 failed:.*ValueError: batch 3 is odd"):
        run_ranks(raises_on_one_rank, 2)
