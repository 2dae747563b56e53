"""A rank that hangs: every rank reports its stacks, and ends with an exit code of its own."""

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

from pretrain.faults.exit_codes import EXIT_HUNG
from pretrain.faults.watchdog import Watchdog, cause_of_end
from tests.support.ranks import free_port
from tests.support.waiting import HANG_SECONDS

# Seconds; the ranks hang at once. A quarter of it is the time in which every rank has to report.
TIMEOUT = 8.0


def _never() -> None:
    threading.Event().wait()


def hang_in_data(rank: int) -> None:
    """Rank 1 waits forever for a batch, rank 0 for rank 1."""
    if rank == 1:
        _never()
    dist.all_reduce(torch.ones(1))


def hang_in_collective(rank: int) -> None:
    """Rank 0 joins a collective that rank 1 does not join."""
    if rank == 0:
        dist.all_reduce(torch.ones(1))
    dist.barrier()


def _rank(rank: int, port: int, log: Path, hang: Callable[[int], None]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 2)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    dist.barrier()
    with Watchdog(TIMEOUT, rank):
        hang(rank)
    os._exit(0)


@pytest.mark.parametrize("hang", [hang_in_data, hang_in_collective])
def test_every_rank_reports_where_it_hangs(tmp_path: Path, hang: Callable[[int], None]) -> None:
    context = multiprocessing.get_context("fork")
    port = free_port()
    logs = [tmp_path / f"rank_{rank}.log" for rank in range(2)]
    processes = [context.Process(target=_rank, args=(rank, port, logs[rank], hang)) for rank in range(2)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(HANG_SECONDS)
        assert [process.exitcode for process in processes] == [EXIT_HUNG, EXIT_HUNG]
    finally:
        for process in processes:
            process.kill()
            process.join()
    cause = f"no step has finished for {TIMEOUT:g} s (guard.step_timeout)"
    for rank, log in enumerate(logs):
        output = log.read_text()
        assert f"rank {rank}: {cause}; all threads:" in output
        assert re.search(rf'File "{__file__}", line \d+ in {hang.__name__}', output)
        assert cause_of_end(output) == cause
        assert cause_of_end(output[: output.index(" ends itself")]) is None, "it may have continued"
    where = logs[1].read_text() if hang is hang_in_data else logs[0].read_text()
    assert ("in _never" if hang is hang_in_data else "all_reduce") in where


def _survive() -> None:
    """Outlive two watchdogs: one that is closed in time, one whose clock says that steps finish quickly."""
    with Watchdog(TIMEOUT, 0):
        pass
    with Watchdog(TIMEOUT, 0, clock=lambda: 0.0) as watchdog:
        watchdog.after_step(1)
    with Watchdog(0.0, 0):
        threading.Event().wait(0.2)
    threading.Event().wait(2 * TIMEOUT)  # longer than any of them would have waited
    os._exit(7)


def test_a_closed_watchdog_ends_nothing() -> None:
    process = multiprocessing.get_context("fork").Process(target=_survive)
    process.start()
    process.join(HANG_SECONDS)
    assert process.exitcode == 7
