"""Preparation by several processes: Ray actors that each finish one part after the other."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cluster.config import ClusterConfig
from cluster.failures import CommandFailedError
from cluster.resources.placement import Placement
from cluster.resources.ray_session import open_session
from data.errors import InputError

if TYPE_CHECKING:
    from cluster.config import PrepareCommandConfig
    from data.prepare.parts import Part
    from data.prepare.preparer import Preparer

MakePreparer = Callable[["PrepareCommandConfig"], "Preparer"]
"""Builds what a worker works with, in its process: importable under its name."""

_REPLACEMENTS = 3  # of a worker that dies, and tries of each part
_SECONDS_BETWEEN_LOOKS = 1.0


def run_on_ray(
    config: PrepareCommandConfig, make: MakePreparer, parts: Sequence[Part], tell: Callable[[int], None]
) -> None:
    """Finish all parts in `config.workers` processes; a process that dies is replaced.

    A part is written as a whole or not at all and depends on nothing but itself, so it does not matter who
    makes it, when, or how often.

    Args:
        config: Settings, handed to `make`.
        make: Builds a worker's `Preparer`.
        parts: What is to be done.
        tell: Told the number of episodes done.

    Raises:
        InputError: Raised in a worker: the same message.
        CommandFailedError: A worker failed otherwise, or died too often.
    """
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    workers = min(config.workers, len(parts))
    placement = _place(workers, config.gpus_per_worker)
    with open_session(ClusterConfig(address=config.address), placement):
        group = _Group(config, make, workers)
        try:
            group.run(deque(parts), tell)
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from error
            raise CommandFailedError(f"a preparing process failed:\n{error}") from error
        except RayActorError as error:
            raise CommandFailedError(
                f"a preparing process died {_REPLACEMENTS + 1} times on the same part (killed, or out of "
                f"memory: it holds the frames of one demonstration and one shard); try fewer workers than "
                f"{config.workers}. What is finished is kept"
            ) from error
        finally:
            for worker in group.workers:
                ray.kill(worker)


def check_workers(config: PrepareCommandConfig) -> None:
    """Refuse numbers of processes and GPUs that cannot be (InputError)."""
    if config.workers < 1:
        raise InputError(f"workers={config.workers}: expected at least 1")
    share = config.gpus_per_worker
    if not (0 <= share <= 1):
        raise InputError(f"gpus_per_worker={share}: expected 0 (CPUs), a share of a GPU, or 1")
    if share and config.address is None:
        import torch

        found, wanted = torch.cuda.device_count(), math.ceil(share * config.workers)
        if wanted > found:
            raise InputError(
                f"workers={config.workers} with gpus_per_worker={share} need {wanted} GPUs, this machine has "
                f"{found}; lower one of them, or set gpus_per_worker=0"
            )


def _place(workers: int, gpus_per_worker: float) -> Placement:
    """CPUs and GPUs of all workers together, as whole GPUs with their share of the workers."""
    units = math.ceil(workers * gpus_per_worker) or workers
    return Placement(
        ranks=units,
        cpus_per_rank=math.ceil(workers / units),
        gpus_per_rank=1 if gpus_per_worker else 0,
        evaluation_cpus=0,
    )


class _Group:
    """The actors, and which part each of them is at."""

    def __init__(self, config: PrepareCommandConfig, make: MakePreparer, count: int) -> None:
        import ray

        actor: Any = ray.remote(_Worker)
        options = actor.options(
            num_cpus=1,
            num_gpus=config.gpus_per_worker,
            max_concurrency=2,  # one thread encodes, the other answers how far it is
            max_restarts=-1,  # each part's tries are counted
            max_task_retries=_REPLACEMENTS,
        )
        self.workers: list[Any] = [options.remote(make, config, os.getcwd()) for _ in range(count)]

    def run(self, waiting: deque[Part], tell: Callable[[int], None]) -> None:
        """Hand out parts as workers become free, until all are finished."""
        import ray

        done = 0
        idle = list(self.workers)
        busy: dict[Any, tuple[Any, Part]] = {}  # result -> who makes it, what
        asked: dict[Any, Any] = {}  # worker -> its answer to come
        heard: dict[Any, int] = {}  # worker -> episodes done of its part
        while waiting or busy:
            while waiting and idle:
                worker, part = idle.pop(), waiting.popleft()
                heard[worker] = 0
                busy[worker.finish.remote(part)] = (worker, part)
            finished, _ = ray.wait(list(busy), timeout=_SECONDS_BETWEEN_LOOKS)
            for result in finished:
                worker, part = busy.pop(result)
                ray.get(result)
                done += len(part.references)
                heard[worker] = 0
                asked.pop(worker, None)
                idle.append(worker)
            self._listen(asked, heard, [worker for worker, _ in busy.values()])
            tell(done + sum(heard[worker] for worker, _ in busy.values()))

    @staticmethod
    def _listen(asked: dict[Any, Any], heard: dict[Any, int], workers: list[Any]) -> None:
        """Ask the busy workers how far they are and note what has been answered; nothing here waits."""
        import ray
        from ray.exceptions import RayError

        for worker in workers:
            if worker not in asked:
                asked[worker] = worker.progress.remote()
            elif ray.wait([asked[worker]], timeout=0)[0]:
                try:
                    heard[worker] = ray.get(asked.pop(worker))
                except RayError:
                    continue  # it died: its part begins again in its replacement


class _Worker:
    """The actor: a process of its own that finishes parts."""

    def __init__(self, make: MakePreparer, config: PrepareCommandConfig, folder: str) -> None:
        if os.path.isdir(folder):  # relative paths of the settings; other machines may not have it
            os.chdir(folder)
        self._preparer = make(config)
        self._done = 0

    def finish(self, part: Part) -> None:
        """Finish a part, unless it is there already."""
        self._done = 0
        self._preparer.finish(part, self._note)

    def progress(self) -> int:
        """Episodes done of the part at hand."""
        return self._done

    def _note(self, done: int) -> None:
        self._done = done
