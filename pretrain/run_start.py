"""Choice of where a run starts, made once by the command or by rank 0 and then handed to every rank.

Light to import: a command needs it before any rank exists.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import InputError
from data.storage.episode_entry import TRAINING_SPLIT
from data.stream.datasets import combined_fingerprint, open_datasets
from data.stream.order.plan import Order
from data.stream.setup import planned_order
from data.tokens.text import TextTokenizer
from pretrain.checkpoint.location import CheckpointLocation, checkpoint_location
from pretrain.checkpoint.origin import Origin, OriginChoice, choose_origin, set_aside
from pretrain.checkpoint_metadata import settings_section
from pretrain.config import TrainingConfig
from pretrain.policy_settings import PolicySettings
from pretrain.run_folder import RunFolder, unwritable_folder, wandb_run_of
from pretrain.setting_changes import Changes, covers
from pretrain.telemetry.events import EventLog

ORDER = "order"
"""In the metadata of checkpoints: the order of the windows, `full` or `local`."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunStart:
    """Where one start of a run begins: chosen once, then handed to every rank. Plain data.

    Attributes:
        origin: Checkpoint of the first weights; None: random weights.
        wandb_run: Id of the run in Weights & Biases.
        resume_history: Values of `checkpointing.resume` that the run was started with, for its checkpoints
            (`pretrain.checkpoint.origin`).
    """

    origin: Origin | None
    wandb_run: str
    resume_history: tuple[str, ...] = ()

    @property
    def resumed_from(self) -> str | None:
        """The checkpoint that the run resumes from; None for a new run."""
        return str(self.origin.checkpoint) if self.origin is not None and self.origin.resumes else None


def open_run(config: TrainingConfig, folder: RunFolder) -> RunStart:
    """Choose where a run starts and open its folder; one process calls this, before the ranks train.

    Nothing is written before settings and origin are known to be usable. Then damaged checkpoints after the
    origin are set aside, and whole ones too, with their evaluations, where `checkpointing.resume` names an
    earlier one.

    Args:
        config: Settings that `check_training` has accepted.
        folder: Folder of the run; the caller has exclusive access (`pretrain.run_lock`).

    Raises:
        InputError: The folder or a checkpoint cannot be used.
    """
    location = checkpoint_location(config.checkpointing, folder)
    changes, moved = folder.changes(config), folder.data_moved(config)
    choice = choose_origin(config, location)
    if moved or "data.split" in changes or _order_may_differ(config, changes, choice):
        _check_same_data(config, choice)
    _check_text_tokenizer(config, choice)
    folder.open(config)
    events = EventLog(folder.events)
    try:
        _set_aside(location, choice, events)
        if choice.back_to is not None:
            folder.supersede_evaluations(choice.back_to)
        _tell(config, changes, choice, events)
        wandb_run = folder.wandb_run(wandb_run_of(choice.metadata, config.run.name))
    except OSError as error:
        raise unwritable_folder(folder.path, error) from error
    return RunStart(choice.origin, wandb_run, choice.history)


def check_dataset(
    metadata: Mapping[str, Any], checkpoint: str, urls: str, fingerprint: str, split: str, order: Order
) -> None:
    """Compare a data set, its split and the order of its windows with those that a checkpoint was trained on.

    Args:
        metadata: Of the checkpoint.
        checkpoint: Its folder or URL.
        urls: Of the data set, for the message.
        fingerprint: Of the data set.
        split: `data.split`.
        order: Of the windows, that `data.shuffle` gives.

    Raises:
        InputError: It is another one, another split, or another order.
    """
    dataset = metadata.get("dataset")  # None: weights alone, which are refused when they are loaded
    if dataset not in (None, fingerprint):
        raise InputError(
            f"{checkpoint}: was trained on the data set {str(dataset)[:12]}, {urls} is {fingerprint[:12]}; "
            "give the same data, or begin a run of another name"
        )
    before = settings_section(metadata, "data").get("split", TRAINING_SPLIT)  # absent in old ones
    if before != split:
        raise InputError(
            f"{checkpoint}: was trained with data.split={before}, now data.split={split}; give the same "
            "split, or begin a run of another name"
        )
    ordered = metadata.get(ORDER, "full")  # absent where there was no other
    if dataset is not None and ordered != order:
        raise InputError(
            f"{checkpoint}: was trained with its windows in {ordered} order, now they would be in {order} "
            f"order; set data.shuffle={ordered}, or begin a run of another name"
        )


def _order_may_differ(config: TrainingConfig, changes: Changes, choice: OriginChoice) -> bool:
    """Whether another order than the checkpoint's is possible: it follows from data and settings alone."""
    if choice.metadata.get("dataset") is None:  # weights alone
        return False
    before = settings_section(choice.metadata, "data").get("shuffle")
    return bool(changes) or ORDER not in choice.metadata or before != config.data.shuffle


def _check_same_data(config: TrainingConfig, choice: OriginChoice) -> None:
    """Refuse another data set at a new place, or another order, before the run's settings are replaced."""
    if choice.origin is not None and choice.origin.resumes:
        datasets = open_datasets(config.data)
        urls = ", ".join(dataset.index.url for dataset in datasets)
        fingerprint = combined_fingerprint(datasets)
        order = planned_order(config.data, datasets)
        check_dataset(choice.metadata, choice.origin.checkpoint, urls, fingerprint, config.data.split, order)


def _check_text_tokenizer(config: TrainingConfig, choice: OriginChoice) -> None:
    """Refuse a text tokenizer, at the same path too, that the checkpoint to resume was not trained with.

    The image tokenizer is compared with the data set's (`pretrain.start.prepare_folder`); checkpoints of
    earlier versions hold no checksum.
    """
    if choice.origin is None or not choice.origin.resumes:
        return
    stored = PolicySettings.of_metadata(choice.origin.checkpoint, choice.metadata)
    path = config.data.text_tokenizer
    if stored is None or (found := TextTokenizer.load(path).sha256) == stored.text_tokenizer_sha256:
        return
    expected = stored.text_tokenizer_sha256
    what = (
        f"{choice.origin.checkpoint}: was trained with the text tokenizer {expected[:12]}, "
        f"data.text_tokenizer={path or 'null (the one that ships)'} has checksum {found[:12]}"
    )
    allowed, name = config.run.change, "data.text_tokenizer"
    if not covers(allowed, name):
        raise InputError(
            f"{what}; give that tokenizer, begin a run of another name, or change it for the rest of this "
            f"run by run.change='[{','.join([*allowed, name])}]'"
        )
    _LOG.warning("%s; the run goes on with it, by run.change", what)


def _set_aside(location: CheckpointLocation, choice: OriginChoice, events: EventLog) -> None:
    set_aside(location, list(choice.damaged))
    for step, error in choice.damaged.items():
        _LOG.warning("%s; it is set aside, the run goes on from the one before", error)
        events.write({"event": "checkpoint_set_aside", "step": step, "error": error})
    if choice.superseded and choice.origin is not None:
        set_aside(location, choice.superseded, superseded=True)
        _LOG.warning(
            "the run goes back to %s: its checkpoints of steps %s are set aside (READY becomes SUPERSEDED)",
            choice.origin.checkpoint,
            ", ".join(map(str, choice.superseded)),
        )
        event = {"event": "superseded", "step": min(choice.superseded), "steps": list(choice.superseded)}
        events.write({**event, "checkpoint": choice.origin.checkpoint})


def _tell(config: TrainingConfig, changes: Changes, choice: OriginChoice, events: EventLog) -> None:
    """Say what this start changes, or why it does not do what `checkpointing.resume` seems to ask for."""
    origin, resume = choice.origin, config.checkpointing.resume
    if resume != "auto" and origin is not None and origin.resumes and not origin.named:
        _LOG.warning(
            "checkpointing.resume=%s held for an earlier start; the run goes on from its own %s",
            resume,
            origin.checkpoint,
        )
    if changes:
        values = {name: {"before": before, "now": now} for name, (before, now) in changes.items()}
        _LOG.info("settings changed by run.change: %s", ", ".join(changes))
        events.write({"event": "settings_changed", "settings": values})
