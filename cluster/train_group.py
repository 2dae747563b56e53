"""The training processes: a Ray Train worker group that runs the same function as torchrun would."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.session import Session
from data.errors import InputError

if TYPE_CHECKING:
    from pretrain.config import TrainingConfig

Train = Callable[["TrainingConfig"], None]

# Errors of ranks whose peer has gone: they follow from the first failure and do not explain it.
_FOLLOW_ON = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")


class TrainingFailedError(Exception):
    """A training process failed for a reason that is not the user's; the message names log and remedy."""


@dataclass(frozen=True, slots=True)
class RankFailure:
    """Why one rank ended.

    Attributes:
        rank: Its number.
        time: Seconds since the epoch.
        user_mistake: Whether it was an `InputError`.
        kind: Name of the exception's class.
        message: Its text.
        traceback: Its formatted traceback.
    """

    rank: int
    time: float
    user_mistake: bool
    kind: str
    message: str
    traceback: str


def run_train_group(
    config: TrainingConfig, session: Session, logs: Path, train: Train, log_to_file: bool = True
) -> None:
    """Run `train(config)` in `parallel.tensor * parallel.data` processes; return when all have ended.

    Every process is in a torch process group (gloo, or NCCL with GPUs) with `RANK`, `LOCAL_RANK` and
    `WORLD_SIZE` set, as under torchrun. Their output goes to `logs/rank_00.log` and so on.

    Args:
        config: Handed to `train` in each process.
        session: The open Ray session.
        logs: Folder that receives the ranks' logs; seen by all machines of the run.
        train: The training function, importable under its name.
        log_to_file: Redirect the ranks' output to `logs`; false leaves it to Ray.

    Raises:
        InputError: Raised in a rank: the same message.
        TrainingFailedError: Any other failure of a rank, or of Ray itself.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    logs.mkdir(parents=True, exist_ok=True)
    for stale in logs.glob("rank_*.failure.json"):
        stale.unlink()
    task = {"train": train, "config": config, "logs": str(logs), "cwd": os.getcwd(), "redirect": log_to_file}
    placement = session.placement
    trainer = TorchTrainer(
        _rank_main,
        train_loop_config=task,
        torch_config=TorchConfig(backend="nccl" if placement.gpus_per_rank else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.ranks,
            use_gpu=placement.gpus_per_rank > 0,
            resources_per_worker=placement.rank_resources,
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{time.time_ns()}",
            storage_path=str(session.folder / "train"),
            worker_runtime_env={"env_vars": {}},
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explain(read_failures(logs), logs, str(error)) from error


def read_failures(logs: Path) -> list[RankFailure]:
    """The failures that the ranks recorded, the first one first."""
    failures = [RankFailure(**json.loads(path.read_text())) for path in logs.glob("rank_*.failure.json")]
    return sorted(failures, key=lambda failure: failure.time)


def _explain(failures: list[RankFailure], logs: Path, reason: str) -> InputError | TrainingFailedError:
    """Turn what the ranks recorded (or Ray's own words) into one error."""
    mistakes = [failure for failure in failures if failure.user_mistake]
    if mistakes:
        return InputError(mistakes[0].message)
    if not failures:
        report = logs / "ray.log"
        report.write_text(reason + "\n")
        return TrainingFailedError(
            f"the training processes ended without a word of their own (killed, or out of memory); see {report} "
            f"and {logs}/rank_*.log"
        )
    causes = [f for f in failures if not any(mark in f.message for mark in _FOLLOW_ON)] or failures
    first = causes[0]
    where = logs / f"rank_{first.rank:02d}.log"
    message = first.message.strip().splitlines()[0] if first.message.strip() else "no message"
    return TrainingFailedError(
        f"rank {first.rank} failed: {first.kind}: {message}; its traceback is in {where}"
    )


def _rank_main(task: dict[str, Any]) -> None:
    """Body of one training process."""
    rank = int(os.environ["RANK"])
    logs = Path(task["logs"])
    if task["redirect"]:
        _redirect_output(logs / f"rank_{rank:02d}.log")
    if os.path.isdir(task["cwd"]):
        os.chdir(task["cwd"])
    with _recorded_failure(logs, rank):
        task["train"](task["config"])


@contextmanager
def _recorded_failure(logs: Path, rank: int) -> Iterator[None]:
    """Write down an exception that passes through; it goes on its way."""
    try:
        yield
    except BaseException as error:
        text = traceback.format_exc()
        print(text, file=sys.stderr, flush=True)
        failure = RankFailure(
            rank, time.time(), isinstance(error, InputError), type(error).__name__, str(error), text
        )
        (logs / f"rank_{rank:02d}.failure.json").write_text(json.dumps(asdict(failure)))
        raise


def _redirect_output(path: Path) -> None:
    """Send this process's output (also that of libraries in C) to a file that is appended to."""
    with path.open("a") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
