"""A rank that hangs: every rank tells where, and ends with its own exit code."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain.faults.exit_codes import HUNG
from pretrain.faults.watchdog import Watchdog, cause_of_end
from tests.support.ranks import free_port

TIMEOUT = 1.0


def _never() -> None:
    threading.Event().wait()


def hang_in_data(rank: int) -> None:
    """Rank 1 waits for a batch that never comes, rank 0 for rank 1."""
    if rank == 1:
        _never()
    dist.all_reduce(torch.ones(1))


def hang_in_collective(rank: int) -> None:
    """Rank 0 joins a collective that rank 1 left out."""
    if rank == 0:
        dist.all_reduce(torch.ones(1))
    dist.barrier()


def _rank(rank: int, port: int, log: Path, hang: Callable[[int], None]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 2)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    with Watchdog(TIMEOUT, rank) as watchdog:
        for _ in range(3):
            dist.barrier()
            watchdog.step_finished()
        hang(rank)
    os._exit(0)


@pytest.mark.parametrize("hang", [hang_in_data, hang_in_collective])
def test_every_rank_tells_where_it_hangs(tmp_path: Path, hang: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("fork")
    port = free_port()
    logs = [tmp_path / f"rank_{rank}.log" for rank in range(2)]
    processes = [context.Process(target=_rank, args=(rank, port, logs[rank], hang)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [HUNG, HUNG]
    finally:
        for process in processes:
            process.kill()
            process.join()
    for rank, log in enumerate(logs):
        said = log.read_text()
        assert f"rank {rank}: no step has finished for 1 s (guard.step_timeout); all threads:" in said
        assert re.search(rf'File "{__file__}", line \d+ in {hang.__name__}', said)
        assert cause_of_end(said) == "no step has finished for 1 s (guard.step_timeout)"
        assert cause_of_end(said[: said.index(" ends itself")]) is None, "it may have gone on"
    where = logs[1].read_text() if hang is hang_in_data else logs[0].read_text()
    assert ("in _never" if hang is hang_in_data else "all_reduce") in where


def _slow_but_alive() -> None:
    with Watchdog(0.4, 0) as watchdog:
        for _ in range(4):
            threading.Event().wait(0.2)
            watchdog.step_finished()
    with Watchdog(0.0, 0):
        threading.Event().wait(0.2)
    threading.Event().wait(0.7)  # nobody watches any more
    os._exit(7)


def test_steps_that_finish_are_left_alone() -> None:
    process = multiprocessing.get_context("fork").Process(target=_slow_but_alive)
    process.start()
    process.join(30)
    assert process.exitcode == 7
