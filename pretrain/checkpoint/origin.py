"""Where the weights of a start come from, decided before anything is built or written.

`checkpointing.resume` holds for the first start of a run. Every checkpoint therefore keeps the history of the
values of `resume` that its run was started with, other than `auto`: a start with a value that the newest own
checkpoint has in its history is a restart, a requeued job or a repeated command, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import InputError
from pretrain.checkpoint.compatibility import check_network, check_resume
from pretrain.checkpoint.location import CheckpointLocation, checkpoint_location, open_checkpoint
from pretrain.checkpoint.manifest import MASTER, Manifest
from pretrain.checkpoint.ready import DamagedCheckpointError
from pretrain.checkpoint_metadata import settings_section
from pretrain.config import TrainingConfig
from pretrain.optim import MOMENTS
from pretrain.run_folder import RunFolder

HISTORY = "resume_history"  # key of a checkpoint's metadata


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the first weights come from.

    Attributes:
        checkpoint: Folder or URL of a committed checkpoint.
        resumes: Whether the run resumes from it, with its moments and its step; else a new run starts with
            its weights.
        named: Whether `checkpointing.resume` names it; else it is the run's own newest one, or `start_from`.
    """

    checkpoint: str
    resumes: bool
    named: bool = False


@dataclass(frozen=True, slots=True)
class OriginChoice:
    """The origin of a start, and what follows from it for the run's own checkpoints.

    Attributes:
        origin: None: random weights.
        metadata: Of the checkpoint that the run resumes from; empty for a new run.
        history: Values of `checkpointing.resume` that the run was started with, this start included.
        damaged: Own checkpoints newer than the origin that are damaged: step, and what is wrong.
        back_to: Step of the checkpoint that `checkpointing.resume` names, if that is the origin.
        superseded: Steps of own checkpoints after it: the run goes back behind them.
    """

    origin: Origin | None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    history: tuple[str, ...] = ()
    damaged: Mapping[int, str] = field(default_factory=dict[int, str])
    back_to: int | None = None
    superseded: Sequence[int] = ()


def choose_origin(config: TrainingConfig, location: CheckpointLocation) -> OriginChoice:
    """Choose the checkpoint that a run resumes from or starts with. Nothing is written.

    Args:
        config: Settings of the run; `checkpointing.resume` and `start_from` decide.
        location: Of the run's own checkpoints.

    Raises:
        InputError: The checkpoint is none, of another network, or (to resume) of another optimiser; or a new
            run was requested where one exists, or `checkpointing.url` holds those of another run.
        DamagedCheckpointError: All of the run's own checkpoints are damaged.
    """
    settings, steps = config.checkpointing, location.steps()
    newest, damaged = _newest_whole(location, steps)
    if newest is not None and settings.url is not None:
        _check_same_run(newest[0], newest[1].metadata, settings.url, config.run.name)
    history = () if newest is None else _history(newest[1].metadata)
    value = _canonical(settings.resume)
    if value not in ("auto", *history):
        if value == "none" and steps:
            raise InputError(
                f"checkpointing.resume=none, but {location.checkpoint_url(steps[-1])} is there; choose "
                "another run.name to begin anew, or resume=auto to go on"
            )
        if value != "none":
            return _named_origin(config, value, steps)
    if newest is not None:
        _check_resume(*newest, config)
        errors = {step: str(error) for step, error in damaged.items()}
        return OriginChoice(Origin(newest[0], resumes=True), newest[1].metadata, history, errors)
    if damaged:
        raise damaged[steps[-1]]
    history = () if value == "auto" else (value,)
    if settings.start_from is None:
        return OriginChoice(None, history=history)
    manifest = Manifest.read(open_checkpoint(settings.start_from))
    check_network(settings.start_from, manifest, config.model, may_lack_head=True)
    return OriginChoice(Origin(settings.start_from, resumes=False), history=history)


def newest_checkpoint(config: TrainingConfig, folder: RunFolder) -> Origin | None:
    """The run's own newest checkpoint, whatever this start began from; None if it has none yet.

    Raises:
        DamagedCheckpointError: It is damaged.
    """
    location = checkpoint_location(config.checkpointing, folder)
    step = location.latest()
    if step is None:
        return None
    Manifest.read(open_checkpoint(location.checkpoint_url(step)))
    return Origin(location.checkpoint_url(step), resumes=True)


def set_aside_newest(
    location: CheckpointLocation, origin: Origin | None, error: DamagedCheckpointError
) -> int:
    """Make the checkpoint before the damaged one the newest, so that the run goes on from there.

    Args:
        location: Of the run's own checkpoints.
        origin: Of the start that met the damage.
        error: What is wrong; it names the checkpoint.

    Returns:
        Step of the checkpoint that was set aside.

    Raises:
        DamagedCheckpointError: `error`: of a checkpoint that is not the newest, is the only one, or was
            named by the user.
        InputError: The storage refuses.
    """
    *older, newest = location.steps() or [0]
    named = origin is not None and origin.named
    if named or not older or location.checkpoint_url(newest) not in str(error):
        raise error
    set_aside(location, [newest])
    return newest


def set_aside(location: CheckpointLocation, steps: Sequence[int], superseded: bool = False) -> None:
    """Set own checkpoints aside, the newest first: see `CheckpointLocation.set_aside`.

    Raises:
        InputError: The storage refuses.
    """
    for step in sorted(steps, reverse=True):
        try:
            location.set_aside(step, superseded)
        except OSError as error:
            raise InputError(
                f"{location.checkpoint_url(step)}: cannot be set aside ({error}); make the storage writable, "
                "or rename its READY"
            ) from error


def _newest_whole(
    location: CheckpointLocation, steps: Sequence[int]
) -> tuple[tuple[str, Manifest] | None, dict[int, DamagedCheckpointError]]:
    """URL and manifest of the newest own checkpoint whose manifest is whole; the damaged ones after it."""
    damaged: dict[int, DamagedCheckpointError] = {}
    for step in reversed(steps):
        url = location.checkpoint_url(step)
        try:
            return (url, Manifest.read(open_checkpoint(url))), damaged
        except DamagedCheckpointError as error:
            damaged[step] = error
    return None, damaged


def _check_resume(checkpoint: str, manifest: Manifest, config: TrainingConfig) -> None:
    check_resume(checkpoint, manifest, config.model, (MASTER, *MOMENTS[config.optim.name]))


def _named_origin(config: TrainingConfig, value: str, steps: Sequence[int]) -> OriginChoice:
    """The checkpoint that `checkpointing.resume` names."""
    checkpoint = config.checkpointing.resume
    manifest = Manifest.read(open_checkpoint(checkpoint))
    _check_resume(checkpoint, manifest, config)
    return OriginChoice(
        Origin(checkpoint, resumes=True, named=True),
        manifest.metadata,
        (*_history(manifest.metadata), value),
        back_to=manifest.step,
        superseded=[step for step in steps if step > manifest.step],
    )


def _history(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Values of `checkpointing.resume` that led to a checkpoint; earlier versions kept only the last one."""
    history = metadata.get(HISTORY)
    if isinstance(history, list):
        return tuple(map(str, history))
    last = settings_section(metadata, "checkpointing").get("resume", "auto")
    return () if last == "auto" else (_canonical(str(last)),)


def _canonical(resume: str) -> str:
    """A value of `checkpointing.resume` such that the same checkpoint has the same one."""
    if resume in ("auto", "none"):
        return resume
    path = resume.removeprefix("file://")
    return path.rstrip("/") if "://" in path else str(Path(path).expanduser().resolve())


def _check_same_run(newest: str, metadata: Mapping[str, Any], url: str, run: str) -> None:
    """Refuse the location of another run, which would resume from, and remove, what this one writes."""
    if (other := settings_section(metadata, "run").get("name", run)) != run:
        raise InputError(
            f"checkpointing.url={url}: holds checkpoints of the run {other}, this one is {run}; give each "
            f"run a location of its own (such as '{url}/${{run.name}}'); to start with those weights, add "
            f"checkpointing.start_from={newest}"
        )
