"""Readers of demonstrations by format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePath

from data.config import Format, SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.json_record import JsonRecord
from data.sources.bad_demonstrations import allowed_bad, check_bad, faults
from data.sources.interface import DemonstrationSource
from data.sources.lerobot import LerobotSource
from data.sources.libero_hdf5 import HDF5_SUFFIXES, LiberoSource, hdf5_files
from data.sources.rlds import RldsSource
from data.sources.source_files import TAR_SUFFIX, SourceFiles, folder_and_pattern, open_files
from data.sources.tars.source import WebdatasetSource

_OWN_INDEX = "index.json"
_WITH_INSTRUCTION = ("rlds", "webdataset")  # formats that do not fix where instructions are


def open_source(config: SourceConfig) -> DemonstrationSource:
    """Select the reader of `config.source`; files are opened when demonstrations are listed or read.

    Raises:
        InputError: The source does not exist, its format cannot be detected or not be read from an object
            store, or it has no use for a setting.
    """
    files = open_files(config)
    found = config.format or detect_format(files, config.source)
    if config.instruction is not None and found not in _WITH_INSTRUCTION:
        raise InputError(
            f"instruction={config.instruction}: is for RLDS and WebDataset only, {config.source} is {found}, "
            "which fixes where they are; leave the setting out"
        )
    if config.episode is not None and found != "webdataset":
        raise InputError(
            f"episode={config.episode}: is for WebDataset only, {config.source} is {found}, which fixes "
            "where episodes begin; leave the setting out"
        )
    if found == "libero":
        return LiberoSource(config, files)
    if found == "lerobot":
        return LerobotSource(config, files)
    if found == "rlds":
        return RldsSource(config, files)
    return WebdatasetSource(config, files)


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


def detect_format(files: SourceFiles, source: str) -> Format:
    """Detect the format from the names of the files.

    Args:
        files: Of the source.
        source: As the settings name it.

    Raises:
        InputError: The folder does not exist, is a prepared data set, or holds no known format.
    """
    folder, pattern = folder_and_pattern(source)
    if pattern is not None:
        return "webdataset"
    root = files.root
    if isinstance(root, Path) and not root.is_dir():
        hdf5_files(root)  # it is one, or there is none
        return "libero"
    if files.is_file(root / "meta" / "info.json"):
        return "lerobot"
    if files.is_file(root / "features.json"):
        return "rlds"
    listed = files.files(root)
    if any(path.suffix.lower() in HDF5_SUFFIXES for path in listed):
        return "libero"
    if any(path.suffix == TAR_SUFFIX for path in listed):
        _check_not_prepared(files, root / _OWN_INDEX)
        return "webdataset"
    raise InputError(
        f"{folder}: neither *.hdf5 (LIBERO's layout) nor meta/info.json (LeRobot) nor features.json (RLDS) "
        "nor *.tar (WebDataset) in this folder; name the folder that holds one of these, collect some with "
        "`worldvla collect`"
    )


def _check_not_prepared(files: SourceFiles, index: PurePath) -> None:
    """Refuse a folder that `worldvla prepare` has written (InputError)."""
    if not files.is_file(index):
        return
    record = JsonRecord.parse(files.read(index, "an index"), str(index))
    if "fingerprint" in record and "schema" in record:
        raise InputError(
            f"{index}: this is a prepared data set, whose frames are codes, expected demonstrations; train "
            "on it as it is with data.url, or name what it was prepared from"
        )
