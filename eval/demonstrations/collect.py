"""`worldvla collect`: demonstrations of the scripted expert, several simulators at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.files import writable_folder
from eval.config import CollectConfig
from eval.demonstrations.hdf5_writer import demonstration_path, write_demonstrations
from eval.demonstrations.recording import Recording, record
from eval.demonstrations.worker_pool import WorkerPool, cached_simulator
from eval.simulator.interface import COLLECTION_STATES, SimulatorError, TaskInfo
from eval.simulator.registry import open_suite, select_tasks

Progress = Callable[[int, int], None]
"""Called with (demonstrations recorded, demonstrations requested)."""

_MIN_RESOLUTION = 16


@dataclass(frozen=True, slots=True)
class Collected:
    """Demonstrations collected for one task.

    Attributes:
        task: The task.
        path: The HDF5 file.
        episodes: Number of demonstrations in it.
        attempts: Number of initial states tried for them.
        steps: Number of time steps of all demonstrations together.
        displaced: Number of demonstrations that begin displaced.
    """

    task: TaskInfo
    path: Path
    episodes: int
    attempts: int
    steps: int
    displaced: int


def collect(config: CollectConfig, progress: Progress | None = None) -> list[Collected]:
    """Record `config.episodes` successful demonstrations of each task into one file a task.

    The result does not depend on the number of workers: initial states are tried in the order of their
    numbers from `config.seed` on, and the first successes are stored.

    Raises:
        InputError: Bad settings, missing simulator parts, demonstrations of a task that are there already, or
            an expert that fails too often.
    """
    _check(config)
    suite = open_suite(config.suite)
    numbers = select_tasks(suite, config.tasks)
    folder = writable_folder(Path(config.out))
    _check_unused([demonstration_path(folder, suite.tasks[number]) for number in numbers])
    total, before = config.episodes * len(numbers), 0
    collected = []
    with WorkerPool(config.workers) as workers:
        for number in numbers:

            def report(done: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + done, total)

            task = suite.tasks[number]
            recordings, attempts = _record_task(config, task, workers, report)
            path = demonstration_path(folder, task)
            write_demonstrations(path, task, recordings, suite.versions(), suite.standin_assets)
            steps = sum(len(recording.actions) for recording in recordings)
            displaced = sum(recording.displaced for recording in recordings)
            collected.append(Collected(task, path, len(recordings), attempts, steps, displaced))
            before += config.episodes
    return collected


def _record_task(
    config: CollectConfig, task: TaskInfo, workers: WorkerPool, report: Callable[[int], None]
) -> tuple[list[Recording], int]:
    """The first successful recordings of a task, and the number of initial states tried for them."""
    recordings: list[Recording] = []
    states = range(config.seed, config.seed + 2 * config.episodes + 4)
    attempts = workers.map(
        _attempt, ((task.suite, task.number, state, config.resolution, config.displaced) for state in states)
    )
    for tried, recording in enumerate(attempts, start=1):
        if recording is None:
            continue
        recordings.append(recording)
        report(len(recordings))
        if len(recordings) == config.episodes:
            return recordings, tried
    raise InputError(
        f"task {task.number} of {task.suite} ({task.instruction}): the expert solved {len(recordings)} of "
        f"{len(states)} initial states, expected {config.episodes}; choose other tasks=[...]"
    )


def _attempt(suite: str, task: int, initial_state: int, pixels: int, displaced: float) -> Recording | None:
    try:
        return record(cached_simulator(suite, task), initial_state, pixels, displaced)
    except SimulatorError:
        return None  # a failed attempt; the next initial state is tried


def _check(config: CollectConfig) -> None:
    if not 0.0 <= config.displaced <= 1.0:
        raise InputError(f"displaced={config.displaced}: expected a probability, from 0 to 1")
    for name, value, minimum in (
        ("episodes", config.episodes, 1),
        ("workers", config.workers, 1),
        ("resolution", config.resolution, _MIN_RESOLUTION),
        ("seed", config.seed, COLLECTION_STATES),
    ):
        if value < minimum:
            reason = "; smaller numbers are evaluation's initial states" if name == "seed" else ""
            raise InputError(f"{name}={value}: expected at least {minimum}{reason}")


def _check_unused(paths: Sequence[Path]) -> None:
    """Refuse to replace demonstrations, which another command may read, too."""
    for path in paths:
        if path.exists():
            raise InputError(f"{path}: has demonstrations already; choose another out, or remove it first")
