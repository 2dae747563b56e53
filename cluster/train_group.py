"""The training processes: a Ray Train worker group that runs the same function as torchrun would."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.failures import CommandFailedError
from cluster.ranks import forget_failures, read_failures, recorded
from cluster.session import Session
from data.errors import InputError

if TYPE_CHECKING:
    from pretrain.config import TrainingConfig

Train = Callable[["TrainingConfig"], None]

# Errors of ranks whose peer has gone: they follow from the first failure and do not explain it.
_FOLLOW_ON = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")


def run_train_group(config: TrainingConfig, session: Session, logs: Path, train: Train) -> None:
    """Run `train(config)` in `parallel.tensor * parallel.data` processes; return when all have ended.

    Every process is in a torch process group (gloo, or NCCL with GPUs) with `RANK`, `LOCAL_RANK` and
    `WORLD_SIZE` set, as under torchrun. Their output goes to `logs/rank_00.log` and so on.

    Args:
        config: Handed to `train` in each process.
        session: The open Ray session.
        logs: Folder that receives the ranks' logs; seen by all machines of the run.
        train: The training function, importable under its name.

    Raises:
        InputError: Raised in a rank: the same message.
        CommandFailedError: Any other failure of a rank, or of Ray itself.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    logs.mkdir(parents=True, exist_ok=True)
    forget_failures(logs, "rank_*")
    placement = session.placement
    trainer = TorchTrainer(
        _rank_main,
        train_loop_config={"train": train, "config": config, "logs": logs.resolve(), "cwd": os.getcwd()},
        torch_config=TorchConfig(backend="nccl" if placement.gpus_per_rank else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.ranks,
            use_gpu=placement.gpus_per_rank > 0,
            resources_per_worker=placement.rank_resources,
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(session.folder / "train"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explain(logs, str(error)) from error


def _explain(logs: Path, reason: str) -> InputError | CommandFailedError:
    """Turn what the ranks wrote down (or Ray's own words) into one error."""
    failures = read_failures(logs, "rank_*")
    mistakes = [failure for failure in failures if failure.user_mistake]
    if mistakes:
        return InputError(mistakes[0].message)
    if not failures:
        report = logs / "ray.log"
        report.write_text(reason + "\n")
        return CommandFailedError(
            "a training process ended without a word of its own (killed, or out of memory); "
            f"see {report} and {logs}/rank_*.log"
        )
    causes = [f for f in failures if not any(mark in f.message for mark in _FOLLOW_ON)] or failures
    first = causes[0]
    return CommandFailedError(
        f"{first.name} failed: {first.headline}; its traceback is in {logs / first.name}.log"
    )


def _rank_main(task: dict[str, Any]) -> None:
    """Body of one training process."""
    if os.path.isdir(task["cwd"]):  # relative paths of the settings; other machines may not have it
        os.chdir(task["cwd"])
    with recorded(task["logs"], f"rank_{int(os.environ['RANK']):02d}"):
        task["train"](task["config"])
