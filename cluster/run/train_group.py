"""The training processes: one Ray actor per rank, each of which runs the same function as torchrun would."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.failures import TrainingFailedError
from cluster.resources.ray_use import RayUse, SessionClosedError
from cluster.resources.reservation import Reservation
from cluster.run.rank_failures import exceptions_of_ranks, explain_failure, log_sizes
from cluster.run.rank_layout import Location, rank_environments
from cluster.run.worker_process import (
    enter_worker,
    log_process,
    read_failures,
    remove_failures,
    write_failure,
)
from data.errors import first_line
from pretrain.faults.exit_codes import PreemptedError
from pretrain.run_layout import RANK_PATTERN, rank_name

if TYPE_CHECKING:
    from pretrain.config import TrainingConfig

TrainRank = Callable[["TrainingConfig"], None]
"""Trains as one rank, in the environment that torchrun would give it: importable under its name."""

# Within which ranks that fail by themselves can say so; watchdogs of ranks that hang end seconds apart.
_LATER_FAILURES_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _RankTask:
    """What every rank is handed.

    Attributes:
        train: The training function.
        config: Its settings.
        logs: Folder of the ranks' logs.
    """

    train: TrainRank
    config: TrainingConfig
    logs: Path


def run_train_group(config: TrainingConfig, reservation: Reservation, logs: Path, train: TrainRank) -> None:
    """Run `train(config)` in `parallel.tensor * parallel.data` processes; return when all have ended.

    Every process has `RANK`, `LOCAL_RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` set, as under
    torchrun, and sees the GPUs of all ranks of its node. Their output goes to `logs/rank_00000.log` and so
    on.

    Args:
        config: Handed to `train` in each process.
        reservation: Of the ranks.
        logs: Folder for the ranks' logs; all machines of the run can write to it.
        train: The training function, importable under its name.

    Raises:
        InputError: Raised in a rank: the same message; a `DamagedCheckpointError` stays one.
        PreemptedError: The ranks were requested to stop, and have.
        TrainingFailedError: Any other failure of a rank, or of Ray itself.
        SessionClosedError: The session is being closed.
    """
    from ray.exceptions import RayError

    logs.mkdir(parents=True, exist_ok=True)
    remove_failures(logs, RANK_PATTERN)
    ranks = reservation.resources.ranks
    sizes_before = log_sizes(logs)
    task = _RankTask(train, config, logs.resolve())
    try:
        with _rank_processes(reservation) as processes:
            failures = _train(reservation.use, processes, task, reservation.start_timeout)
    except RayError as error:  # a node was lost while the ranks started, or Ray does not answer
        raise TrainingFailedError(
            f"Ray could not start the training processes ({type(error).__name__}: {first_line(error)})"
        ) from error
    if failures:
        report = "\n".join(f"{rank_name(rank)}: {error}" for rank, error in sorted(failures.items()))
        raise explain_failure(logs, report, ranks, sizes_before, exceptions_of_ranks(failures))
    if preempted := read_failures(logs, RANK_PATTERN):
        raise PreemptedError(preempted[0].message)


@contextmanager
def _rank_processes(reservation: Reservation) -> Iterator[list[Any]]:
    """One actor per rank, killed with the end of the block."""
    import ray
    from ray.exceptions import RayError

    actor: Any = ray.remote(_Rank)
    processes: list[Any] = []
    try:
        for rank in range(reservation.resources.ranks):
            # Two threads: the ranks train outside the main thread, which handles signals as Ray wants it.
            options = actor.options(max_concurrency=2, **reservation.actor_options(rank))
            with reservation.use.call():
                processes.append(options.remote(os.getcwd()))
        yield processes
    finally:
        # The session has ended or is about to, or Ray does not answer.
        with suppress(RayError, SessionClosedError):
            for process in processes:
                with reservation.use.call():
                    ray.kill(process)


def _train(
    use: RayUse, processes: Sequence[Any], task: _RankTask, timeout: float
) -> dict[int, BaseException]:
    """Train in all processes until they have ended, or one has failed; return the failures by rank.

    Raises:
        TrainingFailedError: The processes do not start in time.
    """
    import ray

    with use.call():
        answers = [process.location.remote() for process in processes]
    starting, deadline = answers, time.monotonic() + timeout
    while starting:
        started, starting = use.wait(starting, timeout=deadline - time.monotonic())
        if not started:
            raise TrainingFailedError(
                f"the training processes did not start within cluster.start_timeout={timeout:g} s"
            )
        with use.call():
            ray.get(started)  # raises where the process has ended instead
    with use.call():
        environments = rank_environments(ray.get(answers))
        results = {
            process.train.remote(environment, task): int(environment["RANK"])
            for process, environment in zip(processes, environments, strict=True)
        }
    running = list(results)
    failures: dict[int, BaseException] = {}
    while running and not failures:
        ended, running = use.wait(running)
        failures |= _failures(use, ended, results)
    if running:
        ended, _ = use.wait(running, len(running), _LATER_FAILURES_SECONDS)
        failures |= _failures(use, ended, results)
    return failures


def _failures(use: RayUse, ended: Sequence[Any], ranks: dict[Any, int]) -> dict[int, BaseException]:
    """Rank -> why it failed, of the ranks that have ended."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    failures: dict[int, BaseException] = {}
    for result in ended:
        try:
            with use.call():
                ray.get(result)
        except RayTaskError as error:
            failures[ranks[result]] = error.cause or error
        except RayError as error:  # its process has ended, or its node
            failures[ranks[result]] = error
    return failures


class _Rank:
    """The actor: a process of its own that trains as one rank.

    Args:
        working_folder: Of the command.
    """

    def __init__(self, working_folder: str) -> None:
        enter_worker(working_folder)

    def location(self) -> Location:
        """Where this process is."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        return Location(
            node=ray.get_runtime_context().get_node_id(),
            address=ray.util.get_node_ip_address(),
            free_port=port,
            gpus=tuple(str(gpu) for gpu in ray.get_gpu_ids()),
        )

    def train(self, environment: dict[str, str], task: _RankTask) -> None:
        """Train; an exception is recorded in the folder of the logs too."""
        os.environ.update(environment)
        rank = int(environment["RANK"])
        name = rank_name(rank)
        with log_process(task.logs, name, rank):
            try:
                task.train(task.config)
            except PreemptedError as error:
                # All ranks end so. An exception in one would end the others, which are at their end too.
                if not write_failure(task.logs, name, error):
                    raise
