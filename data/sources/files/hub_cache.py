"""Data sets in the cache of the Hugging Face hub's client, as a path to them names them.

    datasets--lerobot--libero/refs/main                    the revision that `main` was when it was loaded
    datasets--lerobot--libero/snapshots/REVISION/meta/...  links to ../../blobs/CHECKSUM
    datasets--lerobot--libero/blobs/CHECKSUM               the files

(https://huggingface.co/docs/huggingface_hub/guides/manage-cache). Nothing is loaded from the hub.
"""

from __future__ import annotations

import re
from pathlib import Path

from data.errors import InputError

_FOLDER = re.compile(r"datasets--(?:.+--)?(.+)")
_REVISION = re.compile(r"[0-9A-Za-z._-]{1,100}")


def snapshot(folder: Path) -> Path:
    """The snapshot of a data set's folder in the cache: that of `refs/main`, or the only one.

    Any other folder is returned as it is.

    Raises:
        InputError: It has none, or several and no `refs/main`.
    """
    snapshots = folder / "snapshots"
    if not _FOLDER.fullmatch(folder.absolute().name) or not snapshots.is_dir():
        return folder
    main = folder / "refs" / "main"
    if main.is_file():
        revision = main.read_text("utf-8", "replace").strip()
        if _REVISION.fullmatch(revision) and revision not in (".", "..") and (snapshots / revision).is_dir():
            return snapshots / revision
        raise InputError(
            f"{main}: names the revision {revision[:40]!r}, which is not in {snapshots}; load the data set "
            "again, or name the folder of a snapshot"
        )
    found = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"{folder}: its snapshots are {names}, and no refs/main says which one is meant; name the folder "
            f"of one of them ({snapshots}/REVISION)"
        )
    return found[0]


def dataset_name(folder: Path) -> str:
    """Name of the data set that a folder of the cache, or one of its snapshots, holds; empty: another one."""
    path = folder.absolute()
    if path.parent.name == "snapshots":
        path = path.parent.parent
    match = _FOLDER.fullmatch(path.name)
    return match[1] if match else ""
