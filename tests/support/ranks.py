"""Runs a plain function on several gloo ranks of this machine, quickly.

Heavy libraries are imported once in the test process; every rank is forked from it, so a four-rank job
starts in a fraction of a second. A failing rank ends all of them and its traceback is raised.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import random
import socket
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
warnings.filterwarnings("ignore")

import deepspeed  # noqa: E402 - preloaded for the ranks
import deepspeed.runtime.zero.muon.original_muon  # noqa: E402, F401 - every engine imports it late
import megatron.core.parallel_state  # noqa: E402, F401 - preloaded for the ranks
import torch  # noqa: E402

LISTENING_PORTS = (20_000, 32_000)


class RankFailedError(AssertionError):
    """A rank raised or died; the message holds its number and traceback."""


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 100.0) -> list[Any]:
    """Call `function(*args)` on every rank of a gloo world and return what each rank returned.

    The environment is what torchrun gives (`RANK`, `WORLD_SIZE`, `MASTER_ADDR` ...); the function
    initialises and destroys its own process groups, or leaves that to the end of the process.

    Raises:
        RankFailedError: A rank raised, died or did not finish in `timeout` seconds.
    """
    context = multiprocessing.get_context("fork")
    port = free_port()
    processes, pipes = [], []
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank_main, args=(sender, rank, world_size, port, function, args), daemon=True
        )
        process.start()
        sender.close()
        processes.append(process)
        pipes.append(receiver)
    try:
        return _collect(pipes, time.monotonic() + timeout, timeout)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _collect(pipes: list[Connection], deadline: float, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = {pipe: rank for rank, pipe in enumerate(pipes)}
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankFailedError(f"ranks {sorted(waiting.values())} did not finish within {timeout:.0f} s")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                succeeded, value = pipe.recv()
            except EOFError:
                raise RankFailedError(f"rank {rank} died without a word") from None
            if not succeeded:
                raise RankFailedError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _rank_main(
    sender: Connection, rank: int, world_size: int, port: int, function: Callable[..., Any], args: tuple[Any]
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    gc.freeze()  # else each collection goes through all that was preloaded, and copies it page by page
    try:
        sender.send((True, function(*args)))
    except BaseException:  # the parent re-raises it, whatever it is
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()
        # Skip interpreter shutdown: peers of a failed rank would wait in their process groups.
        os._exit(0)


def free_port() -> int:
    """A port to listen on, below those that the kernel gives to outgoing connections.

    Such a one could be taken between this look and the first rank's use of it.
    """
    while True:
        port = random.SystemRandom().randrange(*LISTENING_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
