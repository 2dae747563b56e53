"""Readers of demonstrations by format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import cast

from data.config import Format, SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.recipe_settings import Part
from data.sources.bad_demonstrations import allowed_bad, check_bad, faults
from data.sources.interface import DemonstrationSource
from data.sources.lerobot import LerobotSource
from data.sources.libero_hdf5 import LiberoSource, hdf5_files
from data.sources.rlds import RldsSource

_READERS: dict[Format, Callable[[SourceConfig], DemonstrationSource]] = {
    "libero": LiberoSource,
    "lerobot": LerobotSource,
    "rlds": RldsSource,
}

_OF_RLDS = ("instruction", "drop_first", "successful", "keep_ranges")
_FIXED_BY_LIBERO = (
    "action",
    "state",
    "embodiment",
    "control_hz",
    "missing",
    "draw_camera",
    "drop_unlabeled",
)


def open_source(config: SourceConfig) -> DemonstrationSource:
    """Select the reader of `config.source`; files are opened when demonstrations are listed or read.

    Raises:
        InputError: The source does not exist, its format cannot be detected, or it has no use for a setting.
    """
    if "://" in config.source:
        raise InputError(
            f"source={config.source}: is an address, expected a folder of a file system; mount or copy it, "
            "then give the path"
        )
    found = config.format or detect_format(Path(config.source))
    _check_settings(config, found)
    return _READERS[found](config)


def _check_settings(config: SourceConfig, found: Format) -> None:
    """Refuse settings that a format has no use for (InputError)."""
    if config.several_instructions == "cut" and found != "lerobot":
        raise InputError(
            f"several_instructions=cut: is for LeRobot only, {config.source} is {found}; choose first, last "
            "or draw"
        )
    defaults = SourceConfig()
    given = {
        name: value
        for name in (*_OF_RLDS, *_FIXED_BY_LIBERO)
        if (value := getattr(config, name)) != getattr(defaults, name)
    }
    for name, value in given.items():
        if found == "libero" and name in _FIXED_BY_LIBERO:
            raise InputError(f"{name}={_shown(value)}: LIBERO's layout fixes this; leave the setting out")
        if found != "rlds" and name in _OF_RLDS:
            raise InputError(
                f"{name}={_shown(value)}: is for RLDS only, {config.source} is {found}; leave the setting out"
            )


def _shown(value: object) -> str:
    """A setting for messages: parts and other sections by their names."""
    if isinstance(value, list):
        return f"[{','.join(_shown(each) for each in cast('list[object]', value))}]"
    if isinstance(value, Part):
        return value.name
    return "{...}" if is_dataclass(value) else str(value)


def read_demonstrations(config: SourceConfig) -> Iterator[Demonstration]:
    """Read all demonstrations of a source, in its order, one at a time.

    Raises:
        InputError: As `DemonstrationSource`, and more of them than `skip_bad` allows cannot be used.
    """
    source = open_source(config)
    references = source.references()
    bad, allowed = faults(references), allowed_bad(config.skip_bad, len(references))
    check_bad(bad, allowed, config.source)
    for reference in references:
        if reference.fault:
            continue
        try:
            demonstration = source.read(reference)
        except InputError as error:
            bad[reference.key] = str(error)
            check_bad(bad, allowed, config.source)
        else:
            yield demonstration


def detect_format(source: Path) -> Format:
    """Detect the format from the names of the files.

    Raises:
        InputError: The folder does not exist, or holds no known format.
    """
    hdf5 = hdf5_files(source)
    if (source / "meta" / "info.json").is_file():
        return "lerobot"
    if (source / "features.json").is_file():
        return "rlds"
    if hdf5:
        return "libero"
    raise InputError(
        f"{source}: neither *.hdf5 (LIBERO's layout) nor meta/info.json (LeRobot) nor features.json (RLDS) "
        "in this folder; name the folder that holds one of these, collect some with `worldvla collect`"
    )
