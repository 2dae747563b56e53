"""Whether a run can resume from a checkpoint or start with its weights, by its manifest alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from data.errors import InputError
from pretrain.checkpoint.manifest import EMA, Manifest
from pretrain.checkpoint_metadata import settings_section
from pretrain.model.action_head import PREFIX as ACTION_HEAD_PREFIX
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes

_MAX_LISTED = 5
_DEFINING = ("swin_norm", "rope_theta", "norm_eps")  # change the function, not the shapes


def check_resume(url: str | Path, manifest: Manifest, config: ModelConfig, states: Collection[str]) -> None:
    """Compare a checkpoint with the network and the optimiser of a run that is to resume; no weight is read.

    Args:
        url: The checkpoint's folder or URL.
        manifest: Of the checkpoint.
        config: The run's network.
        states: What it has for every weight: master, the moments, and the average, which both sides may have
            or not.

    Raises:
        InputError: Weights without moments, another network's, or another optimiser's.
    """
    if manifest.only_weights:
        raise InputError(
            f"{url}: holds weights without moments, so that no run can resume from it; start one "
            "with checkpointing.start_from"
        )
    check_network(url, manifest, config)
    stored, wrong = {name.partition("/")[0] for name in manifest.tensors}, list[str]()
    if more := stored - {*states, EMA}:
        wrong.append(f"holds {', '.join(sorted(more))}, which this optimiser does not have")
    if fewer := set(states) - stored - {EMA}:
        wrong.append(f"does not hold {', '.join(sorted(fewer))}")
    if wrong:
        raise InputError(
            f"{url}: {' and '.join(wrong)}; resume with the optimiser that it was saved with, or start a run "
            "with checkpointing.start_from"
        )


def is_without_head(manifest: Manifest, config: ModelConfig) -> bool:
    """Whether a network has an action head and a checkpoint has nothing of one."""
    stored = any(name.startswith(ACTION_HEAD_PREFIX) for name in manifest.weights)
    return config.action_head is not None and not stored


def check_network(
    url: str | Path, manifest: Manifest, config: ModelConfig, may_lack_head: bool = False
) -> None:
    """Compare a checkpoint's parameters and defining settings with a network; no weight is read.

    Args:
        url: Of the checkpoint, for errors.
        manifest: Its manifest.
        config: Of the network.
        may_lack_head: Whether the checkpoint may be without the network's action head.

    Raises:
        InputError: The checkpoint is of another network: missing and extra parameters, wrong shapes and
            settings are listed.
    """
    stored, expected = manifest.weights, expected_shapes(config)
    settings = settings_section(manifest.metadata, "model")
    new_head = may_lack_head and is_without_head(manifest, config)
    heads = None if new_head else _head_difference(manifest, settings, config)
    if new_head or heads is not None:  # one sentence instead of each tensor of the head
        expected = {name: s for name, s in expected.items() if not name.startswith(ACTION_HEAD_PREFIX)}
    if heads is not None:
        stored = {name: s for name, s in stored.items() if not name.startswith(ACTION_HEAD_PREFIX)}
    wrong = [] if heads is None else [heads]
    wrong += [f"{name} is missing there" for name in sorted(expected.keys() - stored.keys())]
    wrong += [f"{name} is not in this model" for name in sorted(stored.keys() - expected.keys())]
    wrong += [
        f"{name} is {list(stored[name].shape)} there, {list(shape)} here"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    wrong += [
        f"model.{name} is {settings[name]} there, {value} here"
        for name, value in ((name, getattr(config, name)) for name in _DEFINING)
        if name in settings and settings[name] != value
    ]
    if wrong:
        more = f" and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise InputError(
            f"{url}: another network: {'; '.join(wrong[:_MAX_LISTED])}{more}; give the model.* it was made "
            "with"
        )


def _head_difference(manifest: Manifest, settings: Mapping[str, Any], config: ModelConfig) -> str | None:
    """In words, that the action heads are of other chunks, or that only one side has one; None: neither."""
    if is_without_head(manifest, config):
        return (
            "it has no action head (model.action_head=null), this model has one, which only a new run with "
            "checkpointing.start_from adds"
        )
    if not any(name.startswith(ACTION_HEAD_PREFIX) for name in manifest.weights):
        return None
    head = settings.get("action_head")
    horizon = head.get("time_horizon") if isinstance(head, dict) else None
    known = isinstance(horizon, int)
    if config.action_head is None:
        of = f" (model.action_head.time_horizon={horizon})" if known else ""
        return f"it has an action head{of}, this model has none"
    if not known or horizon == config.action_head.time_horizon:
        return None
    return f"model.action_head.time_horizon is {horizon} there, {config.action_head.time_horizon} here"
