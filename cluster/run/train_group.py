"""The training processes: a Ray Train worker group that runs the same function as torchrun would."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.failures import TrainingFailedError
from cluster.resources.placement import Placement
from cluster.resources.ray_session import Session
from cluster.run.worker_process import forget_failures, note_failure, read_failures, recorded
from data.errors import InputError
from pretrain.checkpoint.manifest import DamagedCheckpointError
from pretrain.faults.exit_codes import PreemptedError
from pretrain.faults.watchdog import cause_of_end
from pretrain.run_layout import RANK_PATTERN, rank_log_name, rank_name

if TYPE_CHECKING:
    from pretrain.config import TrainingConfig

Train = Callable[["TrainingConfig"], None]

_LISTED = 3
_NODE_LABEL = "ray.io/node-id"

# Errors of ranks whose peer has gone: they follow from the first failure and do not explain it.
_FOLLOW_ON = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo", "NCCL")


def run_train_group(
    config: TrainingConfig,
    session: Session,
    logs: Path,
    train: Train,
    placement: Placement | None = None,
    nodes: Sequence[str] | None = None,
) -> None:
    """Run `train(config)` in `parallel.tensor * parallel.data` processes; return when all have ended.

    Every process is in a torch process group (gloo, or NCCL with GPUs) with `RANK`, `LOCAL_RANK` and
    `WORLD_SIZE` set, as under torchrun. Their output goes to `logs/rank_00000.log` and so on.

    Args:
        config: Handed to `train` in each process.
        session: The open Ray session.
        logs: Folder that receives the ranks' logs; seen by all machines of the run.
        train: The training function, importable under its name.
        placement: The resources; None: those that the session was opened for.
        nodes: Ray's id of the node of each rank, those of one node together; None: as Ray finds room.

    Raises:
        InputError: Raised in a rank: the same message; a `DamagedCheckpointError` stays one.
        PreemptedError: The ranks were asked to end, and have.
        TrainingFailedError: Any other failure of a rank, or of Ray itself.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    logs.mkdir(parents=True, exist_ok=True)
    forget_failures(logs, RANK_PATTERN)
    placement = placement or session.placement
    written = _log_lengths(logs)
    trainer = TorchTrainer(
        _rank_main,
        train_loop_config={"train": train, "config": config, "logs": logs.resolve(), "cwd": os.getcwd()},
        torch_config=TorchConfig(backend="nccl" if placement.gpus_per_rank else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=placement.ranks,
            use_gpu=placement.gpus_per_rank > 0,
            resources_per_worker=placement.rank_resources,
            # One selector a rank; Ray numbers the ranks node by node in this order.
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
        raise _explain(logs, str(error), placement.ranks, written) from error
    for ended in read_failures(logs, RANK_PATTERN):
        raise PreemptedError(ended.message)


def _explain(
    logs: Path, reason: str, ranks: int, written: Mapping[str, int]
) -> InputError | TrainingFailedError:
    """Turn what the ranks wrote down (or Ray's own words) into one error.

    Args:
        logs: Folder of the ranks' logs.
        reason: What Ray said.
        ranks: Their number.
        written: Lengths that the logs had before these ranks were started.
    """
    # A rank that was asked to end and has is no cause.
    failures = [each for each in read_failures(logs, RANK_PATTERN) if each.kind != PreemptedError.__name__]
    mistakes = [failure for failure in failures if failure.user_mistake]
    if mistakes:
        damaged = mistakes[0].kind == DamagedCheckpointError.__name__
        return (DamagedCheckpointError if damaged else InputError)(mistakes[0].message)
    causes = [each for each in failures if not any(mark in each.message for mark in _FOLLOW_ON)]
    if causes:
        first = causes[0]
        message = f"{first.name} failed: {first.headline}; its traceback is in {logs / first.name}.log"
        return TrainingFailedError(message, first.kind, first.headline)
    if hang := _explain_hang(logs, ranks, written):
        return hang
    report = logs / "ray.log"
    report.write_text(reason + "\n")
    spoke = {each.name for each in failures}
    silent = [name for name in map(rank_name, range(ranks)) if name not in spoke]
    if failures and silent:
        return TrainingFailedError(
            f"{_listed(silent)} ended without a word (killed, or out of memory) and the others lost the "
            f"connection; see {report} and the logs beside it"
        )
    return TrainingFailedError(
        "a training process ended without a word of its own (killed, or out of memory); "
        f"see {report} and {logs}/{RANK_PATTERN}.log"
    )


def _log_lengths(logs: Path) -> dict[str, int]:
    """Bytes in each log, by the name of its process."""
    return {path.stem: path.stat().st_size for path in logs.glob(f"{RANK_PATTERN}.log")}


def _explain_hang(logs: Path, ranks: int, written: Mapping[str, int]) -> TrainingFailedError | None:
    """The error about ranks that their watchdogs have ended; None: no rank was ended so."""
    causes: dict[str, str] = {}
    for rank in range(ranks):
        name, log = rank_name(rank), logs / rank_log_name(rank)
        said = log.read_bytes()[written.get(name, 0) :] if log.exists() else b""
        if cause := cause_of_end(said.decode("utf-8", "replace")):
            causes[name] = cause
    if not causes:
        return None
    cause = next(iter(causes.values()))
    mute = [name for name in map(rank_name, range(ranks)) if name not in causes]
    # All others wait for a rank that cannot even speak.
    who = f"; {_listed(mute)} did not answer" if mute else ""
    message = f"{cause}{who}; the stacks of all threads are in {logs}/{RANK_PATTERN}.log"
    return TrainingFailedError(message, "Hang", f"{cause}{who}")


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _rank_main(task: dict[str, Any]) -> None:
    """Body of one training process."""
    if os.path.isdir(task["cwd"]):  # relative paths of the settings; other machines may not have it
        os.chdir(task["cwd"])
    rank = int(os.environ["RANK"])
    name = rank_name(rank)
    with recorded(task["logs"], name, rank):
        try:
            task["train"](task["config"])
        except PreemptedError as error:  # all ranks end so; a failure of one would have Ray end the others
            note_failure(task["logs"], name, error)
