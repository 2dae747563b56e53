"""Folders for results."""

from __future__ import annotations

import tempfile
from pathlib import Path

from data.errors import InputError


def writable_folder(path: Path, setting: str = "out") -> Path:
    """Make the folder and check that it can be written, before hours of work for results that go there.

    Args:
        path: The folder.
        setting: Name of the setting that says it, for the message.

    Raises:
        InputError: It cannot be made, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(
            f"{setting}={path}: cannot write into this folder ({error.strerror}); choose another"
        ) from error
    return path
