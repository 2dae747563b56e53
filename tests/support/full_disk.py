"""Files on a full disk: Linux' `/dev/full` refuses every write with ENOSPC, by the real calls."""

from __future__ import annotations

import os
from pathlib import Path

MESSAGE = "No space left on device"


def fill(path: Path) -> None:
    """Let this process fail whenever it writes into a file, directly or by `data.files.replacing`."""
    path.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    for name in (path, temporary):
        name.symlink_to("/dev/full")
