"""`worldvla collect`: demonstrations of the scripted expert, several simulators at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from data.errors import InputError
from data.files import writable_folder
from eval.config import CollectConfig
from eval.demonstrations.collected import Collected, collection, read_collected
from eval.demonstrations.hdf5_writer import demonstration_path, write_demonstrations
from eval.demonstrations.recording import Recording, record
from eval.demonstrations.worker_pool import WorkerPool, cached_simulator
from eval.simulator.interface import COLLECTION_STATES, SimulatorError, Suite, TaskInfo
from eval.simulator.registry import open_suite, select_tasks

Progress = Callable[[int, int], None]
"""Called with (demonstrations recorded, demonstrations requested)."""

_MIN_RESOLUTION = 16


def collect(config: CollectConfig, progress: Progress | None = None) -> list[Collected]:
    """Record `config.episodes` successful demonstrations of each task into one file a task.

    The result does not depend on the number of workers: initial states are tried in the order of their
    numbers from `config.seed` on, and the first successes are stored. Files of tasks that an interrupted
    command with the same settings has finished are kept.

    Raises:
        InputError: Bad settings, missing simulator parts, other demonstrations of a task that are there
            already, or an expert that fails too often.
    """
    _check(config)
    suite = open_suite(config.suite)
    numbers = select_tasks(suite, config.tasks)
    folder = writable_folder(Path(config.out))
    tasks = [suite.tasks[number] for number in numbers]
    settings = _settings(config, suite)
    collected: dict[str, Collected] = {}
    for task in tasks:
        found = read_collected(demonstration_path(folder, task), task, settings)
        if found is not None:
            collected[task.name] = found
    if len(collected) < len(tasks):
        with WorkerPool(config.workers) as workers:
            for task in tasks:
                if task.name not in collected:
                    done = config.episodes * len(collected)
                    report = partial(_report, progress, done, config.episodes * len(tasks))
                    collected[task.name] = _collect_task(config, task, settings, workers, report)
    return [collected[task.name] for task in tasks]


def _report(progress: Progress | None, before: int, total: int, done: int) -> None:
    if progress is not None:
        progress(before + done, total)


def _collect_task(
    config: CollectConfig,
    task: TaskInfo,
    settings: dict[str, Any],
    workers: WorkerPool,
    report: Callable[[int], None],
) -> Collected:
    """Record the demonstrations of a task and write its file."""
    recordings, attempts = _record_task(config, task, workers, report)
    path, noted = demonstration_path(Path(config.out), task), collection(settings, attempts)
    write_demonstrations(path, task, recordings, settings["versions"], settings["standin_assets"], noted)
    steps = sum(len(recording.actions) for recording in recordings)
    displaced = sum(recording.displaced for recording in recordings)
    return Collected(task, path, len(recordings), attempts, steps, displaced)


def _settings(config: CollectConfig, suite: Suite) -> dict[str, Any]:
    """All that a task's demonstrations follow from, beside the task."""
    return {
        "suite": suite.name,
        "episodes": config.episodes,
        "resolution": config.resolution,
        "seed": config.seed,
        "displaced": config.displaced,
        "versions": suite.versions(),
        "standin_assets": suite.standin_assets,
    }


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
