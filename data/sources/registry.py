"""Readers of demonstrations by format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.config import SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.sources.interface import DemonstrationSource
from data.sources.lerobot import LerobotSource
from data.sources.libero_hdf5 import LiberoSource, hdf5_files
from data.sources.rlds import RldsSource

FORMATS = ("libero", "lerobot", "rlds")


def open_source(config: SourceConfig) -> DemonstrationSource:
    """Select the reader of `config.source`; files are opened when demonstrations are listed or read.

    Raises:
        InputError: Unknown format, or a folder whose format cannot be detected.
    """
    name = config.format or detect_format(Path(config.source))
    if name == "libero":
        return LiberoSource(config)
    if name == "lerobot":
        return LerobotSource(config)
    if name == "rlds":
        return RldsSource(config)
    raise InputError(
        f"format={name}: expected one of {', '.join(FORMATS)}, or null to detect it from the files"
    )


def read_demonstrations(config: SourceConfig) -> Iterator[Demonstration]:
    """Read all demonstrations of a source, in its order, one at a time."""
    source = open_source(config)
    for reference in source.references():
        yield source.read(reference)


def detect_format(source: Path) -> str:
    """Detect one of `FORMATS` from the names of the files.

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
