"""Settings of a training that cannot be right, refused before anything starts."""

from __future__ import annotations

from collections.abc import Sequence

from data.errors import InputError
from pretrain.config import TrainingConfig
from pretrain.optim import SCHEDULES
from pretrain.telemetry.sinks import WANDB_MODES

PRECISIONS = ("bf16", "fp32")


def check_training(config: TrainingConfig) -> None:
    """Refuse sizes below their least value and unknown choices.

    What depends on the data (sequence length, vocabulary) or on the layout (heads, stages) is checked
    by the stream and by the engine.

    Raises:
        InputError: Names the setting, what it is and what was expected.
    """
    _check_least("trainer.steps", config.trainer.steps, 1)
    _check_least("trainer.stop_after", config.trainer.stop_after, 1)
    _check_least("trainer.log_every", config.trainer.log_every, 1)
    _check_least("parallel.tensor", config.parallel.tensor, 1)
    _check_least("parallel.data", config.parallel.data, 1)
    _check_least("checkpointing.every", config.checkpointing.every, 1)
    _check_least("checkpointing.keep_last", config.checkpointing.keep_last, 1)
    _check_least("optim.lr", config.optim.lr, 0)
    _check_least("optim.warmup_steps", config.optim.warmup_steps, 0)
    _check_least("optim.gradient_clipping", config.optim.gradient_clipping, 0)
    _check_choice("trainer.precision", config.trainer.precision, PRECISIONS)
    _check_choice("optim.schedule", config.optim.schedule, SCHEDULES)
    _check_choice("telemetry.wandb", config.telemetry.wandb, WANDB_MODES)
    _check_choice("parallel.zero_stage", config.parallel.zero_stage, (1, 2, 3))
    if not config.run.name or config.run.name in (".", "..") or "/" in config.run.name:
        raise InputError(
            f"run.name={config.run.name!r}, expected the name of one folder; the folder "
            "that holds it is run.dir"
        )


def _check_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not value >= least:  # NaN is refused as well
        raise InputError(f"{name}={value}, expected {least} or more; correct the setting")


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise InputError(
            f"{name}={value}, expected one of {', '.join(map(str, choices))}; correct the setting"
        )
