"""The metadata that a training gives to each of its checkpoints, as others read it.

A checkpoint may come from elsewhere or from an earlier version: nothing in it is taken for granted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast


def settings_section(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A section (`model`, `data`, `run`) of the settings that a checkpoint was trained with.

    Args:
        metadata: Of the checkpoint.
        name: Of the section.

    Returns:
        Names and values of its settings; empty where the checkpoint holds no such section.
    """
    config = metadata.get("config")
    section = config.get(name) if isinstance(config, dict) else None
    return cast("dict[str, Any]", section) if isinstance(section, dict) else {}
