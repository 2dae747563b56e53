"""Checks of the settings of an evaluation, before anything starts."""

from __future__ import annotations

from data.contracts import Decoder, WeightsChoice
from data.errors import InputError
from eval.config import EvaluationSettings
from eval.simulator.interface import EVALUATION_STATES, Suite
from pretrain.config import TrainingConfig, trained_decoders


def check_settings(settings: EvaluationSettings, prefix: str = "") -> None:
    """Check the ranges of the settings; messages name them with a prefix (`eval.`).

    Raises:
        InputError: A value is out of range.
    """
    for name in ("episodes", "horizon", "workers", "policy_servers", "batch"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"{prefix}{name}={value}: expected at least 1")
    if settings.retries < 0:
        raise InputError(f"{prefix}retries={settings.retries}: expected at least 0")
    if settings.videos is not None and settings.videos < 0:
        raise InputError(f"{prefix}videos={settings.videos}: expected at least 0, or null for all")
    for name in ("step_seconds", "start_seconds", "answer_seconds"):
        if not getattr(settings, name) > 0:  # nor NaN
            raise InputError(f"{prefix}{name}={getattr(settings, name)}: expected more than 0")
    if settings.seed < 0 or settings.seed + settings.episodes > EVALUATION_STATES:
        raise InputError(
            f"{prefix}episodes={settings.episodes} from {prefix}seed={settings.seed}: evaluation has initial "
            f"states 0 to {EVALUATION_STATES - 1}; ask for fewer episodes"
        )


def check_initial_states(
    suite: Suite, tasks: list[int], settings: EvaluationSettings, prefix: str = ""
) -> None:
    """Check that every task has the initial states that are asked for; messages name settings with a prefix.

    Raises:
        InputError: One has fewer.
    """
    fewest = min((suite.tasks[number] for number in tasks), key=lambda task: task.initial_states)
    count = fewest.initial_states
    if settings.seed + settings.episodes > count:
        raise InputError(
            f"{prefix}episodes={settings.episodes} from {prefix}seed={settings.seed}: task {fewest.number} "
            f"of {suite.name} has {count} fixed initial state{'s' * (count > 1)}; ask for fewer episodes"
        )


def check_decoder(decoder: Decoder | None, setting: str, training: TrainingConfig) -> None:
    """Check that the checkpoints of a training will have a decoder; messages name the setting.

    Raises:
        InputError: They will not.
    """
    found = trained_decoders(training)
    if not found:
        raise InputError(
            "data.mixture.action=0: the checkpoints of this training know no actions, and cannot act in a "
            "simulator; set eval.every=0 (and leave eval out of stages), or data.mixture.action=1"
        )
    if decoder is not None and decoder not in found:
        raise InputError(
            f"{setting}={decoder}: the checkpoints of this training have {', '.join(found)} only; "
            "give another decoder, or leave it out"
        )


def check_weights(weights: WeightsChoice, setting: str, training: TrainingConfig) -> None:
    """Check that the checkpoints of a training will have such weights; messages name the setting.

    Raises:
        InputError: They will not.
    """
    if weights == "averaged" and training.optim.ema is None:
        raise InputError(
            f"{setting}=averaged, but optim.ema=null: the checkpoints of this training have no average of "
            "their weights; set optim.ema, for example 0.999, or leave it out"
        )
