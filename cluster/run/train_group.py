"""The training processes: a Ray Train worker group that runs the same function as torchrun would."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.resources.ray_session import Session
from cluster.resources.run_resources import RunResources
from cluster.run.rank_failures import exceptions_of_ranks, explain_failure, log_sizes
from cluster.run.worker_process import (
    enter_worker,
    log_process,
    read_failures,
    remove_failures,
    write_failure,
)
from pretrain.faults.exit_codes import PreemptedError
from pretrain.run_layout import RANK_PATTERN, rank_name

if TYPE_CHECKING:
    from pretrain.config import TrainingConfig

TrainRank = Callable[["TrainingConfig"], None]
"""Trains as one rank of the process group that exists: importable under its name."""

_NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True, slots=True)
class _RankTask:
    """What Ray hands to every rank.

    Attributes:
        train: The training function.
        config: Its settings.
        logs: Folder of the ranks' logs.
        working_folder: Of the command.
    """

    train: TrainRank
    config: TrainingConfig
    logs: Path
    working_folder: str


def run_train_group(
    config: TrainingConfig,
    session: Session,
    logs: Path,
    train: TrainRank,
    resources: RunResources | None = None,
    nodes: Sequence[str] | None = None,
) -> None:
    """Run `train(config)` in `parallel.tensor * parallel.data` processes; return when all have ended.

    Every process is in a torch process group (gloo, or NCCL with GPUs) with `RANK`, `LOCAL_RANK` and
    `WORLD_SIZE` set, as under torchrun. Their output goes to `logs/rank_00000.log` and so on.

    Args:
        config: Handed to `train` in each process.
        session: The open Ray session.
        logs: Folder for the ranks' logs; all machines of the run can write to it.
        train: The training function, importable under its name.
        resources: Resources of the ranks; None: those that the session was opened for.
        nodes: Ray's node id of each rank, those of one node together; None: Ray chooses.

    Raises:
        InputError: Raised in a rank: the same message; a `DamagedCheckpointError` stays one.
        PreemptedError: The ranks were requested to stop, and have.
        TrainingFailedError: Any other failure of a rank, or of Ray itself.
    """
    import ray.train
    from ray.exceptions import RayError
    from ray.train.torch import TorchConfig, TorchTrainer

    logs.mkdir(parents=True, exist_ok=True)
    remove_failures(logs, RANK_PATTERN)
    resources = resources or session.resources
    sizes_before = log_sizes(logs)
    trainer = TorchTrainer(
        _run_rank,
        train_loop_config={"task": _RankTask(train, config, logs.resolve(), os.getcwd())},
        torch_config=TorchConfig(backend="nccl" if resources.gpus_per_rank else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.ranks,
            use_gpu=resources.gpus_per_rank > 0,
            resources_per_worker=resources.per_rank,
            # One selector per rank; Ray numbers the ranks node by node in this order.
            label_selector=None if nodes is None else [{_NODE_LABEL: node} for node in nodes],
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(session.folder / "train"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        errors = exceptions_of_ranks(getattr(error, "worker_failures", {}))
        raise explain_failure(logs, str(error), resources.ranks, sizes_before, errors) from error
    except RayError as error:  # the controller, a process of its own, has ended, or Ray does not answer
        name = type(error).__name__
        _release_resources()
        raise explain_failure(logs, str(error), resources.ranks, sizes_before, ray_failure=name) from error
    if preempted := read_failures(logs, RANK_PATTERN):
        raise PreemptedError(preempted[0].message)


def _release_resources() -> None:
    """Remove the placement groups of a controller that was killed, and with them its ranks.

    Ray itself notices such a controller only where its dashboard runs. Those of evaluations have a name; the
    id of a placement group ends with that of its job.
    """
    import ray
    from ray.util import placement_group_table, remove_placement_group
    from ray.util.placement_group import PlacementGroup

    job = ray.get_runtime_context().get_job_id()
    for identity, group in placement_group_table().items():
        if identity.endswith(job) and not group["name"] and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(identity))))


def _run_rank(loop_config: dict[str, _RankTask]) -> None:
    """Body of one training process."""
    task = loop_config["task"]
    enter_worker(task.working_folder)
    rank = int(os.environ["RANK"])
    name = rank_name(rank)
    with log_process(task.logs, name, rank):
        try:
            task.train(task.config)
        except PreemptedError as error:
            # All ranks end so. An exception in one would make Ray end the others, which are at their end too.
            if not write_failure(task.logs, name, error):
                raise
