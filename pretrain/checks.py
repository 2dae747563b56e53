"""Checks of the settings of a training, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from data.errors import InputError
from data.storage.episode_entry import ALL_SPLITS
from pretrain.config import GuardConfig, Offload, TrainingConfig, ZeroStage
from pretrain.model.attention.choose import check_backend
from pretrain.model.transformer import check_divides
from pretrain.precision import PRECISIONS
from pretrain.sources import longest_chunk

OFFLOAD_STAGES: dict[Offload, tuple[ZeroStage, ...]] = {
    "none": (0, 1, 2, 3),
    "optimizer": (1, 2, 3),
    "all": (3,),
}


def check_training(config: TrainingConfig) -> None:
    """Refuse sizes below their minimum, unknown choices and values that do not fit the layout.

    Values that depend on the data (sequence length, vocabulary) are checked by the stream, values that depend
    on the hardware by `check_hardware`. Called once, by the command or by torchrun's entry point.

    Raises:
        InputError: Names the setting, what it is and what was expected.
    """
    _check_minimum("trainer.steps", config.trainer.steps, 1)
    _check_minimum("trainer.stop_after", config.trainer.stop_after, 1)
    _check_minimum("trainer.log_every", config.trainer.log_every, 1)
    _check_minimum("parallel.tensor", config.parallel.tensor, 1)
    _check_minimum("parallel.data", config.parallel.data, 1)
    _check_minimum("checkpointing.every", config.checkpointing.every, 1)
    _check_minimum("checkpointing.keep_last", config.checkpointing.keep_last, 1)
    _check_guard(config.guard)
    _check_minimum("optim.lr", config.optim.lr, 0)
    _check_minimum("optim.warmup_steps", config.optim.warmup_steps, 0)
    _check_minimum("optim.gradient_clipping", config.optim.gradient_clipping, 0)
    _check_minimum("optim.weight_decay", config.optim.weight_decay, 0)
    _check_minimum("optim.eps", config.optim.eps, 0)
    _check_fraction("optim.warmup_fraction", config.optim.warmup_fraction)
    _check_fraction("optim.decay_fraction", config.optim.decay_fraction)
    _check_fraction("optim.min_lr_ratio", config.optim.min_lr_ratio)
    _check_minimum("loss.image_weight", config.loss.image_weight, 0)
    _check_minimum("loss.z_loss", config.loss.z_loss, 0)
    _check_minimum("loss.action_l1", config.loss.action_l1, 0)
    for name in ("vocabulary_size", "hidden_size", "ffn_size", "layers", "heads", "max_positions"):
        _check_minimum(f"model.{name}", getattr(config.model, name), 1)
    _check_minimum("model.key_value_heads", config.model.key_value_heads, 1)
    _check_minimum("model.recompute_layers", config.model.recompute_layers, 0)
    _check_minimum("model.rope_theta", config.model.rope_theta, 1)
    _check_minimum("model.norm_eps", config.model.norm_eps, 0)
    _check_below_one("model.dropout", config.model.dropout)
    for beta in config.optim.betas:
        _check_below_one("optim.betas", beta)
    _check_ema(config.optim.ema)
    _check_profile_steps(config.telemetry.profile_steps)
    _check_minimum("parallel.hpz_partition_size", config.parallel.hpz_partition_size, 1)
    _check_layout(config)
    _check_action_head(config)
    _check_zero(config)
    _check_validation(config)
    if not config.run.name or config.run.name in (".", "..") or "/" in config.run.name:
        raise InputError(
            f"run.name={config.run.name!r}, expected the name of one folder; the folder "
            "that holds it is run.dir"
        )


def check_hardware(config: TrainingConfig, device: torch.device) -> None:
    """Refuse settings that this rank's device does not support, before anything is built or written.

    Raises:
        InputError: Names the setting and what to do.
    """
    check_backend(config.model, device, PRECISIONS[config.trainer.precision])


def _check_guard(guard: GuardConfig) -> None:
    _check_minimum("guard.spike", guard.spike, 1)
    _check_minimum("guard.memory", guard.memory, 2)
    _check_minimum("guard.bad_steps", guard.bad_steps, 1)
    _check_minimum("guard.rollbacks", guard.rollbacks, 0)
    _check_minimum("guard.step_timeout", guard.step_timeout, 0)


def _check_profile_steps(steps: Sequence[int]) -> None:
    if any(step < 1 for step in steps):
        raise InputError(
            f"telemetry.profile_steps={list(steps)}, expected steps from 1 (the first of the process) on"
        )


def _check_layout(config: TrainingConfig) -> None:
    trainer, parallel = config.trainer, config.parallel
    check_divides(config.model, parallel.tensor)
    if trainer.global_batch % parallel.data:
        raise InputError(
            f"trainer.global_batch={trainer.global_batch} does not divide by parallel.data={parallel.data}; "
            "change one of them"
        )
    if not parallel.sequence_parallel:
        return
    if parallel.tensor == 1:
        raise InputError(
            "parallel.sequence_parallel=true, but parallel.tensor=1: the tokens are shared out over "
            "tensor-parallel ranks; set it to false, or parallel.tensor to 2 or more"
        )
    if trainer.sequence_length % parallel.tensor:
        raise InputError(
            f"trainer.sequence_length={trainer.sequence_length} does not divide by parallel.tensor="
            f"{parallel.tensor}, as parallel.sequence_parallel=true asks; change one of them"
        )


def _check_action_head(config: TrainingConfig) -> None:
    head, chunk = config.model.action_head, longest_chunk(config.data)
    if head is not None and head.time_horizon != chunk:
        raise InputError(
            f"model.action_head.time_horizon={head.time_horizon}, but {_chunk_name(config, chunk)}={chunk}: "
            "the head predicts the chunk's actions; set both to the same number"
        )
    if head is None and not config.loss.tokens_for_actions:
        raise InputError(
            "loss.tokens_for_actions=false, but model.action_head is null: nothing would learn to act; set "
            f"model.action_head.time_horizon={chunk}, or loss.tokens_for_actions=true"
        )
    if config.loss.action_l1 == 0 and not config.loss.tokens_for_actions:
        raise InputError(
            "loss.tokens_for_actions=false and loss.action_l1=0: nothing would learn to act; set "
            "loss.action_l1=10, or loss.tokens_for_actions=true"
        )


def _chunk_name(config: TrainingConfig, chunk: int) -> str:
    """The setting that a chunk of this many actions, the longest, is from."""
    owners = [number for number, source in enumerate(config.data.sources) if source.chunk == chunk]
    return f"data.sources[{owners[0]}].chunk" if owners else "data.chunk"


def _check_zero(config: TrainingConfig) -> None:
    parallel = config.parallel
    stages, stage, size = OFFLOAD_STAGES[parallel.offload], parallel.zero_stage, parallel.hpz_partition_size
    if stage != "auto" and stage not in stages:
        raise InputError(
            f"parallel.offload={parallel.offload}, but parallel.zero_stage={stage}: expected one of "
            f"{', '.join(map(str, stages))}; change one of them"
        )
    if size == 1:
        return
    if stage not in (3, "auto") or parallel.tensor > 1:
        raise InputError(
            f"parallel.hpz_partition_size={size}, but parallel.zero_stage={stage} and parallel.tensor="
            f"{parallel.tensor}: it needs stage 3 and tensor 1 (its groups of neighbouring ranks would mix "
            "tensor-parallel shares without an error); set it to 1"
        )
    if parallel.data % size:
        raise InputError(
            f"parallel.hpz_partition_size={size} does not divide parallel.data={parallel.data}; change one "
            "of them"
        )


def _check_ema(decay: float | None) -> None:
    if decay is not None and not 0 < decay < 1:
        raise InputError(
            f"optim.ema={decay}, expected a decay above 0 and below 1 (0.999, say), or null for no average"
        )


def _check_validation(config: TrainingConfig) -> None:
    if config.validation.every and config.data.split == ALL_SPLITS:
        raise InputError(
            f"validation.every={config.validation.every} would measure episodes that data.split=all trains "
            "on; set validation.every=0, or data.split=train"
        )


def _check_minimum(name: str, value: float | None, minimum: int) -> None:
    if value is not None and not minimum <= value < math.inf:  # NaN is refused as well
        raise InputError(f"{name}={value}, expected {minimum} or more, and finite; correct the setting")


def _check_fraction(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise InputError(f"{name}={value}, expected 0 to 1; correct the setting")


def _check_below_one(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise InputError(f"{name}={value}, expected at least 0 and below 1; correct the setting")
