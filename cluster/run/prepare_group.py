"""Preparation by several processes: a pool of Ray actors, each of which finishes one part after the other."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cluster.config import ClusterConfig
from cluster.failures import CommandFailedError
from cluster.resources.ray_session import open_session
from cluster.resources.run_resources import RunResources
from cluster.run.progress_poll import ProgressPoll
from cluster.run.worker_process import enter_worker
from data.errors import InputError

if TYPE_CHECKING:
    from cluster.config import PrepareCommandConfig
    from data.prepare.parts import Part
    from data.prepare.preparer import Preparer

MakePreparer = Callable[["PrepareCommandConfig"], "Preparer"]
"""Builds the preparer of a worker, in its process: importable under its name."""

_MAX_RETRIES = 3  # of a part whose worker has died
_POLL_SECONDS = 1.0


def run_on_ray(
    config: PrepareCommandConfig, make: MakePreparer, parts: Sequence[Part], report: Callable[[int], None]
) -> None:
    """Finish all parts in `config.workers` processes; Ray replaces a process that dies and retries its part.

    A part is written as a whole or not at all and depends on nothing but itself, so that any worker may make
    it, at any time and more than once.

    Args:
        config: Settings, handed to `make`.
        make: Builds a worker's `Preparer`.
        parts: What is to be done.
        report: Called with the number of finished episodes.

    Raises:
        InputError: Raised in a worker: the same message.
        CommandFailedError: A worker failed otherwise, or died too often.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    count = min(config.workers, len(parts))
    resources = _resources(count, config.gpus_per_worker)
    with open_session(ClusterConfig(address=config.address), resources):
        workers = _start_workers(config, make, count)
        try:
            _finish_parts(workers, parts, report)
            # Now: a process that is killed leaves its files.
            ray.get([worker.close.remote() for worker in workers])
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise CommandFailedError(f"a preparing process failed:\n{error}") from error
        except RayActorError as error:
            raise CommandFailedError(
                f"a preparing process died {_MAX_RETRIES + 1} times on the same part (killed, or out of "
                f"memory: it holds the frames of one demonstration and one shard); try fewer workers than "
                f"{config.workers}. Finished parts stay"
            ) from error
        finally:
            for worker in workers:
                ray.kill(worker)


def check_workers(config: PrepareCommandConfig) -> None:
    """Check the numbers of processes and GPUs.

    Raises:
        InputError: A number is out of range, or this machine has too few GPUs.
    """
    if config.workers < 1:
        raise InputError(f"workers={config.workers}: expected at least 1")
    share = config.gpus_per_worker
    if not (0 <= share <= 1):
        raise InputError(f"gpus_per_worker={share}: expected 0 (CPUs), a share of a GPU, or 1")
    if share and config.address is None:
        import torch

        available, needed = torch.cuda.device_count(), math.ceil(share * config.workers)
        if needed > available:
            raise InputError(
                f"workers={config.workers} with gpus_per_worker={share} need {needed} GPUs, this machine has "
                f"{available}; lower one of them, or set gpus_per_worker=0"
            )


def _resources(workers: int, gpus_per_worker: float) -> RunResources:
    """CPUs and GPUs of all workers together, as whole GPUs with their share of the workers."""
    units = math.ceil(workers * gpus_per_worker) or workers
    return RunResources(
        ranks=units,
        cpus_per_rank=math.ceil(workers / units),
        gpus_per_rank=1 if gpus_per_worker else 0,
        evaluation_cpus=0,
    )


def _start_workers(config: PrepareCommandConfig, make: MakePreparer, count: int) -> list[Any]:
    import ray

    actor: Any = ray.remote(_Worker)
    options = actor.options(
        num_cpus=1,
        num_gpus=config.gpus_per_worker,
        max_concurrency=2,  # one thread encodes, the other reports progress
        max_restarts=-1,  # limited by the retries of each part
        max_task_retries=_MAX_RETRIES,
    )
    return [options.remote(make, config, number, os.getcwd()) for number in range(count)]


def _finish_parts(workers: list[Any], parts: Sequence[Part], report: Callable[[int], None]) -> None:
    """Distribute the parts over the workers and wait until all are finished."""
    from ray.exceptions import RayTaskError
    from ray.util import ActorPool

    pool = ActorPool(workers)
    for part in parts:
        pool.submit(lambda worker, part: worker.finish.remote(part), part)
    finished = 0
    polls = [ProgressPoll(worker, 0) for worker in workers]
    while pool.has_next():
        try:
            number, episodes = pool.get_next_unordered(timeout=_POLL_SECONDS)
        except RayTaskError:  # perhaps a TimeoutError as well: one that was raised in a worker
            raise
        except TimeoutError:
            pass
        else:
            finished += episodes
            polls[number] = ProgressPoll(
                workers[number], 0
            )  # an answer on its way is about the finished part
        report(finished + sum(poll.latest() for poll in polls))


class _Worker:
    """The actor: a process of its own that finishes parts.

    Args:
        make: Builds the preparer.
        config: Settings, handed to `make`.
        number: Of this worker in the pool.
        working_folder: Of the command.
    """

    def __init__(
        self, make: MakePreparer, config: PrepareCommandConfig, number: int, working_folder: str
    ) -> None:
        enter_worker(working_folder)
        self._preparer = make(config)
        self._number = number
        self._episodes_done = 0

    def finish(self, part: Part) -> tuple[int, int]:
        """Finish a part, unless it is complete already.

        Returns:
            This worker's number and the episodes of the part.
        """
        self._episodes_done = 0
        self._preparer.finish(part, self._set_progress)
        self._episodes_done = 0
        return self._number, len(part.references)

    def close(self) -> None:
        """Remove what was fetched of the demonstrations."""
        self._preparer.close()

    def progress(self) -> int:
        """Finished episodes of the current part."""
        return self._episodes_done

    def _set_progress(self, done: int) -> None:
        self._episodes_done = done
