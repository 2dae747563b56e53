"""Opens demonstrations of any format that is known here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.config import SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.sources.interface import Source
from data.sources.lerobot import LerobotSource
from data.sources.libero_hdf5 import LiberoSource
from data.sources.rlds import RldsSource

FORMATS = ("libero", "lerobot", "rlds")


def open_source(config: SourceConfig) -> Source:
    """The reader of `config.source`; files are opened when demonstrations are listed or read.

    Raises:
        InputError: Unknown format, or a folder whose format cannot be told.
    """
    name = config.format or detect_format(Path(config.source))
    if name == "libero":
        return LiberoSource(config)
    if name == "lerobot":
        return LerobotSource(config)
    if name == "rlds":
        return RldsSource(config)
    raise InputError(
        f"format={name}: expected one of {', '.join(FORMATS)}, or null to tell it from the files"
    )


def read_demonstrations(config: SourceConfig) -> Iterator[Demonstration]:
    """All demonstrations of a source, in its order, one at a time."""
    source = open_source(config)
    for reference in source.references():
        yield source.read(reference)


def detect_format(source: Path) -> str:
    """One of `FORMATS`, told from the names of the files.

    Raises:
        InputError: Nothing there, or nothing that is known.
    """
    if source.is_file():
        return "libero"
    if not source.is_dir():
        raise InputError(
            f"{source}: no such file or folder; expected demonstrations, collect some with `worldvla collect`"
        )
    if (source / "meta" / "info.json").is_file():
        return "lerobot"
    if (source / "features.json").is_file():
        return "rlds"
    if any(path.suffix in (".hdf5", ".h5") for path in source.iterdir()):
        return "libero"
    raise InputError(
        f"{source}: neither *.hdf5 (LIBERO's layout) nor meta/info.json (LeRobot) nor features.json (RLDS) "
        "in this folder; name the folder that holds one of these, collect some with `worldvla collect`"
    )
