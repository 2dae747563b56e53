"""Simulators in several processes, or in this one where one is enough."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from typing import TypeVar

from data.errors import InputError
from eval.pool.child import end_with_parent
from eval.simulator.interface import Simulator
from eval.simulator.registry import open_suite
from eval.simulator.rendering import uses_egl

R = TypeVar("R")

_open: dict[tuple[str, int], Simulator] = {}


def cached_simulator(suite: str, task: int) -> Simulator:
    """This process's simulator of a task, open until another task is requested."""
    if (suite, task) not in _open:
        close_cached_simulator()
        _open[suite, task] = open_suite(suite).open(task)
    return _open[suite, task]


def close_cached_simulator() -> None:
    """Close this process's simulator, if one is open."""
    for simulator in _open.values():
        simulator.close()
    _open.clear()


class WorkerPool:
    """Maps a function over arguments in `count` processes, with results in order.

    With one worker everything runs in this process, except where the simulator renders through EGL: the
    command may compute on its GPU later. A context manager: leaving it ends the processes and closes this
    process's simulator. The processes also end when this one is killed.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._executor: ProcessPoolExecutor | None = None
        self._other_children: set[BaseProcess] = set()

    def __enter__(self) -> WorkerPool:
        if self._count > 1 or uses_egl():
            self._other_children = set(multiprocessing.active_children())
            # spawn: a rendering context does not survive a fork
            self._executor = ProcessPoolExecutor(
                self._count, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
            )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._executor is None:
            close_cached_simulator()
            return
        try:
            if kind is not None and not issubclass(kind, Exception):  # ctrl-C does not wait for the workers
                self._kill_workers()
            self._executor.shutdown(wait=True, cancel_futures=True)
        except BaseException:  # ctrl-C while they end: the process would wait for them, and they for it
            self._kill_workers()
            self._executor.shutdown(wait=True)
            raise

    def _kill_workers(self) -> None:
        for process in set(multiprocessing.active_children()) - self._other_children:
            process.kill()

    def map(self, function: Callable[..., R], arguments: Iterable[tuple]) -> Iterator[R]:
        """Yield results in the order of `arguments`, which are consumed only as workers become free.

        Raises:
            InputError: A process died.
        """
        if self._executor is None:
            for argument in arguments:
                yield function(*argument)
            return
        pending: deque[Future[R]] = deque()
        try:
            for argument in arguments:
                pending.append(self._executor.submit(function, *argument))
                if len(pending) > self._count:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise InputError(
                "a simulator process died, most likely for lack of memory (LIBERO needs about 2 GB each); "
                f"workers was {self._count}, try workers=1"
            ) from error
        finally:
            for future in pending:
                future.cancel()


def _start_worker() -> None:
    """Leave ctrl-C to the command, which ends its workers: one that ended first would seem to have died."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
