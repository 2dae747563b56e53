"""Simulators in several processes, or in this one where one is enough."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from data.errors import InputError
from eval.pool.child import end_with_parent
from eval.simulator.interface import Simulator
from eval.simulator.registry import open_suite

R = TypeVar("R")

_kept: dict[tuple[str, int], Simulator] = {}


def kept_simulator(suite: str, task: int) -> Simulator:
    """This process's simulator of a task; it is kept until another task is asked for."""
    if (suite, task) not in _kept:
        close_simulators()
        _kept[suite, task] = open_suite(suite).open(task)
    return _kept[suite, task]


def close_simulators() -> None:
    """Close the simulator that this process keeps."""
    for simulator in _kept.values():
        simulator.close()
    _kept.clear()


class Workers:
    """Calls a function on many arguments, `count` at a time, and gives the results in order.

    With one worker everything runs in this process. Use it as a context manager: leaving it ends the
    processes and closes this process's simulator. They also end when this process is killed.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self._count > 1:
            # spawn: a rendering context does not survive a fork
            self._pool = ProcessPoolExecutor(
                self._count, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        else:
            close_simulators()

    def map(self, function: Callable[..., R], arguments: Iterable[tuple]) -> Iterator[R]:
        """Results in the order of `arguments`, which are taken only as far as workers are free.

        Raises:
            InputError: A process died.
        """
        if self._pool is None:
            for argument in arguments:
                yield function(*argument)
            return
        pending: deque[Future[R]] = deque()
        try:
            for argument in arguments:
                pending.append(self._pool.submit(function, *argument))
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
