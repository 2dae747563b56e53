"""Runs a plain function on several gloo ranks of this machine, quickly.

Heavy libraries are imported once in the test process. Before its first test it forks a server, from which
every rank is forked: a four-rank job starts in a fraction of a second, and no rank inherits what tests start
later (Ray, simulators, servers and their threads). A failing rank ends all of them; its traceback is raised.

    test process --fork--> server --fork--> launcher of one job --fork--> rank 0, rank 1, ...
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
warnings.filterwarnings("ignore")

import deepspeed  # noqa: E402, F401 - preloaded for the ranks
import megatron.core.parallel_state  # noqa: E402, F401 - preloaded for the ranks
import torch  # noqa: E402

from tests.support.waiting import HANG_SECONDS  # noqa: E402

LISTENING_PORTS = (20_000, 32_000)
# What an engine or a training imports late: once in the server instead of in every rank.
IMPORTED_LATE = (
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.muon.original_muon",
    "numpy.ma",
    "pretrain.main",
    "pretrain.parallel.engine",
    "pretrain.telemetry.console",
    "pretrain.telemetry.progress",
    "pretrain.telemetry.wandb_sink",
    "torch._subclasses.schema_check_mode",
    "torch.profiler._cupti_monitor",
)


class RankFailedError(AssertionError):
    """A rank raised or died; the message holds its number and traceback."""


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout: float = HANG_SECONDS
) -> list[Any]:
    """Call `function(*args)` on every rank of a gloo world and return what each rank returned.

    The environment is what torchrun gives (`RANK`, `WORLD_SIZE`, `MASTER_ADDR` ...) beside that of the test
    process, whose folder and output the ranks have too; other changes that a test makes to its own process
    (a patched attribute) do not reach them. The function initialises and destroys its own process groups, or
    leaves that to the end of the processes, which is when all of them have returned or one has failed.

    Args:
        function: Of a module; it and its arguments are pickled.
        world_size: Number of ranks.
        args: Of the function, the same on each rank.
        timeout: Seconds; a guard against hangs.

    Raises:
        RankFailedError: A rank raised, died or did not finish in `timeout` seconds.
    """
    start_rank_server()
    assert _server is not None
    receivers, senders = zip(*(multiprocessing.Pipe(duplex=False) for _ in range(world_size)), strict=True)
    ours, theirs = socket.socketpair()
    with ours, theirs, Connection(os.dup(ours.fileno())) as launcher:
        socket.send_fds(_server, [b"+"], [theirs.fileno()])
        theirs.close()
        sys.stdout.flush()
        sys.stderr.flush()
        socket.send_fds(ours, [b"+"], [1, 2, *(sender.fileno() for sender in senders)])
        for sender in senders:
            sender.close()
        environment = {**os.environ, "WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        launcher.send((environment, os.getcwd()))
        launcher.send_bytes(pickle.dumps((function, args)))
        try:
            return _collect(list(receivers), time.monotonic() + timeout, timeout)
        finally:
            launcher.send(None)  # end those that still run
            with contextlib.suppress(EOFError):
                launcher.recv()
            for receiver in receivers:
                receiver.close()


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


_server: socket.socket | None = None  # end of the connection to the server that this process has forked
_server_owner = 0


def start_rank_server() -> None:
    """Fork the server that ranks are forked from, unless this process has one; it ends with this process."""
    global _server, _server_owner
    if _server is not None and _server_owner == os.getpid():
        return
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        _never_return(_serve, theirs)
    theirs.close()
    _server, _server_owner = ours, os.getpid()


def _never_return(function: Callable[..., None], *args: Any) -> NoReturn:
    """Call the function and end this process, which was forked from one that goes on with its tests."""
    try:
        function(*args)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _serve(requests: socket.socket) -> None:
    """Fork a launcher for each connection that comes, until the test process has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C: the test process ends, and this one with it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # launchers need nobody who waits for them
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else each collection goes through all that was preloaded, and copies it page by page
    while True:
        _, handles, _, _ = socket.recv_fds(requests, 1, 1)
        if not handles:
            return
        if os.fork() == 0:
            requests.close()
            _never_return(_launch, handles[0])
        os.close(handles[0])


def _launch(handle: int) -> None:
    """Run one job: fork its ranks, and end those that are left when it has ended, or the test process has."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, handles, _, _ = socket.recv_fds(socket.socket(fileno=os.dup(handle)), 1, 250)
    stdout, stderr, *senders = handles
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    sys.stdout, sys.stderr = map(
        _unbuffered, (1, 2)
    )  # pytest's own are of the time when the server was forked
    test_process = Connection(handle)
    environment, folder = test_process.recv()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    function, args = pickle.loads(test_process.recv_bytes())
    processes = []
    for rank, sender in enumerate(senders):
        process = multiprocessing.get_context("fork").Process(
            target=_rank_main, args=(sender, senders[rank + 1 :], rank, function, args), daemon=True
        )
        process.start()
        os.close(sender)
        processes.append(process)
    with contextlib.suppress(EOFError):
        test_process.recv()
    for process in processes:
        process.kill()
        process.join()
    with contextlib.suppress(OSError):
        test_process.send(None)


def _unbuffered(number: int) -> io.TextIOWrapper:
    """A text file on a descriptor: a rank's last line is written even if it is killed then."""
    return io.TextIOWrapper(open(number, "wb", buffering=0, closefd=False), write_through=True)


def _rank_main(
    sender: int, other_senders: list[int], rank: int, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for other in other_senders:  # its pipe must end with its own rank
        os.close(other)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    connection = Connection(sender, readable=False)
    try:
        connection.send((True, function(*args)))
    except BaseException:  # the test process re-raises it, whatever it is
        connection.send((False, traceback.format_exc()))
    finally:
        connection.close()
        _await_end_of_job()


def _await_end_of_job() -> NoReturn:
    """Stay until the launcher ends all ranks, as others may still connect to this one or read its store."""
    try:
        launcher = multiprocessing.parent_process()
        assert launcher is not None
        launcher.join()
    finally:
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
