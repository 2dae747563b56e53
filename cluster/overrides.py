"""Settings as `key=value` words of the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.model.config import ModelConfig

_NETWORK_KEYS = (
    "vocabulary_size",
    "hidden_size",
    "ffn_size",
    "layers",
    "heads",
    "key_value_heads",
    "swin_norm",
    "max_positions",
    "rope_theta",
    "norm_eps",
)


def format_value(value: object) -> str:
    """A value in the syntax of the command line: `null`, `true`, `[1,2]`, `0.5`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(str, value)) + "]"
    return str(value)


def override(key: str, value: object) -> str:
    """`key=value`."""
    return f"{key}={format_value(value)}"


def key_of(override: str) -> str:
    """The key of a `key=value` word."""
    return override.partition("=")[0]


def model_overrides(model: ModelConfig) -> list[str]:
    """The network of a model: the nearest `model=NAME` of `configs/model`, and what differs from it."""
    from pretrain.settings import named_models

    candidates: list[list[str]] = []
    for name, named in named_models().items():
        values = {key: getattr(model, key) for key in _NETWORK_KEYS}
        differing = {key: value for key, value in values.items() if value != getattr(named, key)}
        candidates.append([f"model={name}", *(override(f"model.{k}", v) for k, v in differing.items())])
    head = model.action_head
    chosen = [] if head is None else [override("model.action_head.time_horizon", head.time_horizon)]
    return [*min(candidates, key=len), *chosen]
