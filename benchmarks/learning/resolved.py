"""The settings that a command works with: those of its words and all defaults, of files in `configs/` too."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.cli.commands import COMMANDS
from pretrain.settings import compose

WORK = "WORK"
"""In place of the working folder, which may be moved."""


def without_place(value: Any, work: Path) -> Any:
    """A value of JSON with `WORK` in place of the working folder in all its texts."""
    if isinstance(value, str):
        return value.replace(str(work), WORK)
    if isinstance(value, Mapping):
        return {str(key): without_place(each, work) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [without_place(each, work) for each in value]
    return value


def command_settings(words: Sequence[str], work: Path) -> dict[str, Any]:
    """The settings of a command of the project, without the place of the working folder.

    Args:
        words: Arguments of Python as `demo_runs.worldvla` makes them.
        work: The working folder.

    Raises:
        InputError: Settings that the command would refuse.
    """
    name, *settings = without_place(words[2:], work)
    command = next(command for command in COMMANDS if command.name == name)
    composed = compose(
        f"worldvla {name}", command.load_schema(), command.config_name, [*command.preset, *settings]
    )
    return dataclasses.asdict(composed)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Key, earlier and present value of the settings that differ; None where one is missing."""
    before, after = dict(_flat(then)), dict(_flat(now))
    for key in before | after:
        if before.get(key) != after.get(key):
            yield key, before.get(key), after.get(key)


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
