"""`worldvla collect`: demonstrations of the scripted expert, several simulators at once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from eval.config import CollectConfig
from eval.demonstration_file import demonstration_path, write_demonstrations
from eval.recording import Recording, record
from eval.simulator.interface import COLLECTION_STATES, Simulator, TaskInfo
from eval.simulator.registry import open_suite, select_tasks

Progress = Callable[[int, int], None]
"""Called with (demonstrations recorded, demonstrations wanted)."""


@dataclass(frozen=True, slots=True)
class Collected:
    """What was collected for one task.

    Attributes:
        task: The task.
        path: The HDF5 file.
        episodes: Demonstrations in it.
        attempts: Initial states that were tried for them.
        steps: Time steps of all demonstrations together.
    """

    task: TaskInfo
    path: Path
    episodes: int
    attempts: int
    steps: int


def collect(config: CollectConfig, progress: Progress | None = None) -> list[Collected]:
    """Record `config.episodes` successful demonstrations of each task into one file a task.

    The result depends on the settings only, not on the number of workers: initial states are
    tried in the order of their numbers from `config.seed` on, and the first that succeed are kept.

    Raises:
        InputError: Bad settings, missing simulator parts, or an expert that fails too often.
    """
    suite = open_suite(config.suite)
    numbers = select_tasks(suite, config.tasks)
    _check(config)
    folder = Path(config.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"out={config.out}: cannot make this folder ({error.strerror}); choose another"
        ) from error
    wanted, done = config.episodes * len(numbers), 0
    collected = []
    with _Workers(config.workers) as workers:
        for number in numbers:
            recordings: list[Recording] = []
            attempts = 0
            for attempts, recording in enumerate(workers.record(config, number), start=1):  # noqa: B007
                if recording is not None:
                    recordings.append(recording)
                    done += 1
                    if progress is not None:
                        progress(done, wanted)
                if len(recordings) == config.episodes:
                    break
            task = suite.tasks[number]
            if len(recordings) < config.episodes:
                raise InputError(
                    f"task {number} of {config.suite} ({task.instruction}): the expert "
                    f"solved {len(recordings)} of {attempts} initial states, {config.episodes} wanted; "
                    "choose other tasks=[...]"
                )
            path = demonstration_path(folder, task)
            write_demonstrations(path, task, recordings, suite.versions(), suite.standin_assets)
            steps = sum(len(recording.actions) for recording in recordings)
            collected.append(Collected(task, path, len(recordings), attempts, steps))
    return collected


def _check(config: CollectConfig) -> None:
    for name, value, least in (
        ("episodes", config.episodes, 1),
        ("workers", config.workers, 1),
        ("resolution", config.resolution, 16),
        ("seed", config.seed, COLLECTION_STATES),
    ):
        if value < least:
            why = "; smaller numbers are evaluation's initial states" if name == "seed" else ""
            raise InputError(f"{name}={value}: expected at least {least}{why}")


class _Workers:
    """Simulator processes, or this process alone where one is enough."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: Executor | None = None

    def __enter__(self) -> _Workers:
        if self._count > 1:
            # spawn: a rendering context does not survive a fork
            self._pool = ProcessPoolExecutor(self._count, mp_context=multiprocessing.get_context("spawn"))
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        else:
            _close_simulator()

    def record(self, config: CollectConfig, task: int) -> Iterator[Recording | None]:
        """Attempts from initial states `config.seed`, `config.seed + 1`, ... in order, a bounded number."""
        limit = 2 * config.episodes + 4
        states = range(config.seed, config.seed + limit)
        if self._pool is None:
            for state in states:
                yield _attempt(config.suite, task, state, config.resolution)
            return
        pending: list[Future[Recording | None]] = []
        remaining = iter(states)
        for state in remaining:
            pending.append(self._pool.submit(_attempt, config.suite, task, state, config.resolution))
            if len(pending) > self._count:
                yield self._result(pending.pop(0))
        while pending:
            yield self._result(pending.pop(0))

    def _result(self, future: Future[Recording | None]) -> Recording | None:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise InputError(
                "a simulator process died, most likely for lack of memory (LIBERO needs about 2 GB each); "
                f"was workers={self._count}, try workers=1"
            ) from error


_simulators: dict[tuple[str, int], Simulator] = {}


def _attempt(suite: str, task: int, initial_state: int, pixels: int) -> Recording | None:
    """Record one initial state with this process's simulator, which is kept while the task stays."""
    if (suite, task) not in _simulators:
        _close_simulator()
        _simulators[suite, task] = open_suite(suite).open(task)
    return record(_simulators[suite, task], initial_state, pixels)


def _close_simulator() -> None:
    for simulator in _simulators.values():
        simulator.close()
    _simulators.clear()
