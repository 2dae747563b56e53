"""Files on a full disk: Linux' `/dev/full` refuses every write with ENOSPC, by the real calls."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from data.files import replacing

MESSAGE = "No space left on device"


def fill(path: Path) -> None:
    """Let this process fail whenever it writes into a file, directly or by `data.files.replacing`."""
    path.unlink(missing_ok=True)
    for name in (path, _temporary(path)):
        name.symlink_to("/dev/full")


def _temporary(path: Path) -> Path:
    """The name under which this process writes the file."""
    found = path
    with suppress(InterruptedError), replacing(path) as temporary:
        found = temporary
        raise InterruptedError  # nothing is written
    return found
