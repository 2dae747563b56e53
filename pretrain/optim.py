"""Learning-rate schedules and AdamW's parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from data.errors import InputError
from pretrain.config import OptimConfig

SCHEDULES = ("constant", "cosine", "wsd")


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    r"""Learning rate of update number `step` (from 0) of a schedule of `steps` updates.

    The warm-up rises linearly and reaches the peak with update number `warmup_steps`; cosine and wsd
    reach `min_lr_ratio` of the peak with the last update::

        constant  /------------    cosine  /--.__     wsd  /--------\
                 /                        /      `--      /          \

    Raises:
        InputError: Unknown schedule.
    """
    if config.schedule not in SCHEDULES:
        raise InputError(
            f"optim.schedule={config.schedule!r}, expected one of {', '.join(SCHEDULES)}; correct the setting"
        )
    if step < config.warmup_steps:
        return config.lr * (step + 1) / (config.warmup_steps + 1)
    return config.lr * _decay(config, step, steps)


def _decay(config: OptimConfig, step: int, steps: int) -> float:
    """Share of the peak, after the warm-up."""
    last = steps - 1
    if config.schedule == "constant":
        return 1.0
    start = config.warmup_steps
    if config.schedule == "wsd":
        start = max(start, last - round(config.decay_fraction * steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, last - start)))
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1.0 - progress
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * fall


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW groups: weight decay on matrices, none on norms and biases.

    The names decide, not the shapes: the q/k norms are matrices [heads, head size], and ZeRO-3 leaves a
    parameter without its shape.

    Args:
        parameters: `module.named_parameters()`.
        weight_decay: Of the matrices.
    """
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in parameters:
        (vectors if "norm" in name or name.endswith(".bias") else matrices).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
