"""Learning-rate schedules, optimisers and their parameter groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from pretrain.config import OptimConfig, OptimizerName
from pretrain.model.parameters import is_matrix

MOMENTS: Mapping[OptimizerName, tuple[str, ...]] = {"adamw": ("exp_avg", "exp_avg_sq"), "lion": ("exp_avg",)}
"""Names of the state tensors that each optimiser has for every weight."""


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    r"""Learning rate of update number `step` (from 0) of a schedule of `steps` updates.

    The warm-up rises linearly and reaches the peak with update number `warmup_updates`; cosine and wsd
    reach `min_lr_ratio` of the peak with the last update::

        constant  /------------    cosine  /--.__     wsd  /--------\
                 /                        /      `--      /          \
    """
    warmup = warmup_updates(config, steps)
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    return config.lr * _decay(config, step, steps, warmup)


def warmup_updates(config: OptimConfig, steps: int) -> int:
    """Updates of the warm-up in a schedule of `steps` updates."""
    if config.warmup_fraction is None:
        return config.warmup_steps
    return round(config.warmup_fraction * steps)


def _decay(config: OptimConfig, step: int, steps: int, warmup: int) -> float:
    """Share of the peak, after the warm-up."""
    last = steps - 1
    if config.schedule == "constant":
        return 1.0
    start = warmup
    if config.schedule == "wsd":
        start = max(start, last - round(config.decay_fraction * steps))
    progress = min(1.0, max(0.0, (step - start) / max(1, last - start)))
    fall = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1.0 - progress
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * fall


def build_optimizer(
    parameters: Iterable[tuple[str, nn.Parameter]], config: OptimConfig, decay_all: bool = False
) -> torch.optim.Optimizer:
    """The optimiser of `config.name`, which skips an update if its attribute `found_inf` is 1.

    Args:
        parameters: `module.named_parameters()`.
        config: Its settings; the learning rate is set at each step.
        decay_all: See `parameter_groups`.
    """
    groups = parameter_groups(parameters, config.weight_decay, decay_all)
    if config.name == "lion":
        from pretrain.lion import SkippableLion  # imported late: its package takes seconds

        # Parameter by parameter, so that temporaries exist for one of them at a time.
        return SkippableLion(groups, lr=config.lr, betas=config.betas, foreach=False)
    # One kernel for each tensor, without a build; reads the flag on the device.
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def moment_names(optimizer: torch.optim.Optimizer) -> tuple[str, ...]:
    """`MOMENTS` of an optimiser that `build_optimizer` has made."""
    return MOMENTS["adamw" if has_step_count(optimizer) else "lion"]


def has_step_count(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its state counts updates as `step`: AdamW's does, for the bias correction; Lion's does not."""
    return isinstance(optimizer, torch.optim.AdamW)


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, decay_all: bool = False
) -> list[dict[str, Any]]:
    """Groups of the optimiser: weight decay on matrices, none on norms and biases.

    Args:
        parameters: `module.named_parameters()`.
        weight_decay: Of the matrices.
        decay_all: Decay norms and biases too, as the published code does.
    """
    if decay_all:
        return [{"params": [parameter for _, parameter in parameters], "weight_decay": weight_decay}]
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in parameters:
        (matrices if is_matrix(name) else vectors).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
