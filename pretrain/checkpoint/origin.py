"""Where a run's first weights come from, decided before anything is built or written."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data.errors import InputError
from pretrain.checkpoint.load import check_network
from pretrain.checkpoint.location import CheckpointLocation, checkpoint_location, open_checkpoint
from pretrain.checkpoint.manifest import Manifest
from pretrain.config import CheckpointingConfig, TrainingConfig
from pretrain.model.config import ModelConfig
from pretrain.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the first weights come from.

    Attributes:
        checkpoint: Folder or URL of a committed checkpoint.
        resumes: Whether the run resumes from it, with its moments and its step; else a new run starts with
            its weights.
    """

    checkpoint: str
    resumes: bool


def choose_origin(
    settings: CheckpointingConfig, model: ModelConfig, location: CheckpointLocation, run: str
) -> Origin | None:
    """Choose the checkpoint that a run resumes from or starts with; None: random weights.

    Args:
        settings: `resume` and `start_from` decide.
        model: The run's network.
        location: Of the run's own checkpoints.
        run: Its name.

    Raises:
        InputError: `start_from` is no checkpoint or of another network, or a new run was requested where
            one exists, or `checkpointing.url` holds those of another run.
    """
    step = location.latest()
    newest = None if step is None else location.checkpoint_url(step)
    if settings.resume == "none" and newest is not None:
        raise InputError(
            f"checkpointing.resume=none, but {newest} is there; choose another run.name to begin anew, "
            "or resume=auto to go on"
        )
    if newest is not None and settings.url is not None:
        _check_same_run(newest, settings.url, run)
    if settings.resume not in ("auto", "none"):
        return Origin(settings.resume, resumes=True)
    if newest is not None:
        return Origin(newest, resumes=True)
    if settings.start_from is None:
        return None
    check_network(settings.start_from, Manifest.read(open_checkpoint(settings.start_from)), model)
    return Origin(settings.start_from, resumes=False)


def newest_checkpoint(config: TrainingConfig, folder: RunFolder) -> Origin | None:
    """The run's own newest checkpoint, whatever this start began from; None if it has none yet."""
    settings = replace(config.checkpointing, resume="auto", start_from=None)
    location = checkpoint_location(config.checkpointing, folder)
    return choose_origin(settings, config.model, location, config.run.name)


def _check_same_run(newest: str, url: str, run: str) -> None:
    """Refuse the location of another run, which would resume from, and remove, what this one writes."""
    settings = Manifest.read(open_checkpoint(newest)).metadata.get("config", {}).get("run", {})
    if (other := settings.get("name", run)) != run:
        raise InputError(
            f"checkpointing.url={url}: holds checkpoints of the run {other}, this one is {run}; give each "
            f"run a location of its own (such as '{url}/${{run.name}}'); to start with those weights, add "
            f"checkpointing.start_from={newest}"
        )
