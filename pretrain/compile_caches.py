"""Where compiled kernels are kept: one folder a user and node, shared by its processes and kept between runs.

| variable | folder | what is in it |
|---|---|---|
| TORCHINDUCTOR_CACHE_DIR | `inductor` | what torch.compile has generated and compiled |
| TRITON_CACHE_DIR | `triton` | Triton's binaries; else a folder for each number of a GPU |
| FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED | 1 | flash-attn-4 else compiles in every process anew |
| FLASH_ATTENTION_CUTE_DSL_CACHE_DIR | `flash_attention` | its kernels, by version of its sources |

The folder is `worldvla-compiled-<user id>` in the node's temporary folder. All three write a file under
another name first and rename it, and flash-attn-4 locks each entry, so that processes may compile the same
kernel at the same time. What is in them is executed: the folder belongs to the user alone (0700), and one
that does not is refused. Variables that the user has set stay as they are.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from data.errors import InputError

FOLDERS = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "FLASH_ATTENTION_CUTE_DSL_CACHE_DIR": "flash_attention",
}
_SWITCHES = {"FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1"}


def compile_caches(caller: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that are not set yet, for processes of this user on this node; makes their folder.

    Args:
        caller: Environment whose variables stay; None: of this process.

    Raises:
        InputError: The folder belongs to another user, is open to others, or cannot be made.
    """
    caller = os.environ if caller is None else caller
    missing = {name: folder for name, folder in FOLDERS.items() if name not in caller}
    switches = {name: value for name, value in _SWITCHES.items() if name not in caller}
    root = own_folder(Path(tempfile.gettempdir()) / f"worldvla-compiled-{os.getuid()}") if missing else None
    return {name: f"{root}/{folder}" for name, folder in missing.items()} | switches


def use_compile_caches() -> None:
    """Set the variables in this process; not where torch.compile is switched off.

    Before torch's compiler is imported (by DeepSpeed, for one): it sets its own variable to its default then.

    Raises:
        InputError: As `compile_caches`.
    """
    if os.environ.get("TORCHDYNAMO_DISABLE") != "1":
        os.environ.update(compile_caches())


def own_folder(path: Path) -> Path:
    """Make a folder for this user alone, or take it if it is that already.

    Args:
        path: Of the folder; its parent may be open to all, such as /tmp.

    Raises:
        InputError: It is a link, belongs to another user, is open to others, or cannot be made.
    """
    remedy = "remove it, or set " + ", ".join(FOLDERS)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise InputError(
            f"{path}: cannot be made for compiled kernels ({error.strerror}); set {', '.join(FOLDERS)}"
        ) from None
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{path}: found a link or a file, expected a folder for compiled kernels; {remedy}")
    if found.st_uid != os.getuid():
        raise InputError(
            f"{path}: belongs to user {found.st_uid}, expected {os.getuid()}, whose processes would execute "
            f"what is in it; {remedy}"
        )
    if found.st_mode & 0o077:
        raise InputError(
            f"{path}: open to other users (mode {found.st_mode & 0o777:o}), expected 700; {remedy}"
        )
    return path
