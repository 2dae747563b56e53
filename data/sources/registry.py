"""Readers of demonstrations by format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path, PurePath
from typing import cast

from data.config import Format, SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.json_record import JsonRecord
from data.recipe_settings import Part
from data.sources.bad_demonstrations import allowed_bad, check_bad, faults
from data.sources.files.source_files import TAR_SUFFIX, SourceFiles, folder_and_pattern, open_files
from data.sources.interface import DemonstrationSource
from data.sources.lerobot.source import LerobotSource
from data.sources.libero.source import HDF5_SUFFIXES, LiberoSource, hdf5_files
from data.sources.rlds.source import RldsSource
from data.sources.tars.source import WebdatasetSource

_OWN_INDEX = "index.json"
_NAMES: dict[Format, str] = {
    "libero": "LIBERO's HDF5",
    "lerobot": "LeRobot",
    "rlds": "RLDS",
    "webdataset": "WebDataset",
}
_FORMATS_OF: dict[str, tuple[Format, ...]] = {
    "instruction": ("rlds", "webdataset"),
    "episode_field": ("webdataset",),
    "drop_first": ("rlds",),
    "successful": ("rlds",),
    "keep_ranges": ("rlds",),
    "draw_camera": ("rlds", "lerobot"),
    "drop_unlabeled": ("rlds", "lerobot"),
}
"""Settings that only some formats have."""
_FIXED_BY_LIBERO = ("action", "state", "embodiment", "control_hz", "missing")


def open_source(config: SourceConfig) -> DemonstrationSource:
    """Select the reader of `config.source`; files are opened when demonstrations are listed or read.

    Raises:
        InputError: The source does not exist, its format cannot be detected or not be read from an object
            store, or it has no use for a setting.
    """
    files = open_files(config)
    found = config.format or detect_format(files, config.source)
    _check_settings(config, found)
    if found == "libero":
        return LiberoSource(config, files)
    if found == "lerobot":
        return LerobotSource(config, files)
    if found == "rlds":
        return RldsSource(config, files)
    return WebdatasetSource(config, files)


def check_place(config: SourceConfig, out: str) -> None:
    """Refuse to write shards among the tar files of a source: they would be taken for demonstrations.

    Raises:
        InputError: The source is a folder of tar files, and `out` is that folder.
    """
    folder, pattern = folder_and_pattern(config.source)
    if pattern is not None or _place(folder) != _place(out):
        return
    if (config.format or detect_format(open_files(config), config.source)) == "webdataset":
        raise InputError(
            f"out={out}: is the folder of the source's own tar files, among which shards would be read as "
            "demonstrations; choose another out="
        )


def _place(url: str) -> str:
    return url.rstrip("/") if "://" in url else str(Path(url).expanduser().resolve())


def _check_settings(config: SourceConfig, found: Format) -> None:
    """Refuse settings that a format has no use for (InputError)."""
    if config.several_instructions == "cut" and found != "lerobot":
        raise InputError(
            f"several_instructions=cut: is for LeRobot only, {config.source} is {found}; choose first, last "
            "or draw"
        )
    defaults = SourceConfig()
    for name in (*_FORMATS_OF, *_FIXED_BY_LIBERO):
        value = getattr(config, name)
        if value == getattr(defaults, name):
            continue
        if found == "libero" and name in _FIXED_BY_LIBERO:
            raise InputError(f"{name}={_shown(value)}: LIBERO's layout fixes this; leave the setting out")
        formats = _FORMATS_OF.get(name, (found,))
        if found not in formats:
            named = " and ".join(_NAMES[each] for each in formats)
            raise InputError(
                f"{name}={_shown(value)}: is for {named} only, {config.source} is {found}; leave the "
                "setting out"
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
