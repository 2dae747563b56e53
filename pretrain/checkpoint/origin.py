"""Where a run's first weights come from, decided before anything is built or written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from pretrain.checkpoint.load import check_network
from pretrain.checkpoint.manifest import Manifest, latest
from pretrain.config import CheckpointingConfig
from pretrain.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the first weights come from.

    Attributes:
        checkpoint: A committed checkpoint.
        goes_on: Whether the run goes on from it, with its moments and its step; else a new run begins with
            its weights.
    """

    checkpoint: Path
    goes_on: bool


def choose_origin(settings: CheckpointingConfig, model: ModelConfig, checkpoints: Path) -> Origin | None:
    """The checkpoint that a run goes on from, or begins with; None: random weights.

    Args:
        settings: What was asked for.
        model: The run's network.
        checkpoints: Folder of the run's own checkpoints.

    Raises:
        InputError: `start_from` is no checkpoint or of another network, or a new run was asked for where
            one is already.
    """
    newest = latest(checkpoints)
    if settings.resume == "none" and newest is not None:
        raise InputError(
            f"checkpointing.resume=none, but {newest} is there; choose another run.name to begin anew, "
            "or resume=auto to go on"
        )
    if settings.resume not in ("auto", "none"):
        return Origin(Path(settings.resume), goes_on=True)
    if newest is not None:
        return Origin(newest, goes_on=True)
    if settings.start_from is None:
        return None
    start = Path(settings.start_from)
    check_network(start, Manifest.read(start), model)
    return Origin(start, goes_on=False)
