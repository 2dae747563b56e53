"""The lock of a run folder: one command trains in it at a time, under Ray and under torchrun alike."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from data.errors import InputError
from data.locks import LockHeldError, exclusive_lock
from pretrain.run_folder import unwritable_folder
from pretrain.run_layout import RunLayout


@contextmanager
def exclusive_access(folder: RunLayout) -> Generator[None]:
    """Keep every other command that trains out of a run folder for the length of a `with` block.

    Taken before anything is written there (`data.locks.exclusive_lock`). A block that writes nothing leaves
    no folder behind.

    Args:
        folder: Of the run; made where it does not exist.

    Raises:
        InputError: Another command trains in the folder, or it cannot be written.
    """
    with ExitStack() as held:
        try:
            made = _make(folder.path)
            held.enter_context(exclusive_lock(folder.supervisor_lock))
        except LockHeldError as error:
            raise InputError(
                f"{folder.path}: another command is training in this folder{error.holder}; wait for it, or "
                "choose another run.name"
            ) from error
        except OSError as error:
            raise unwritable_folder(folder.path, error) from error
        try:
            yield
        finally:
            _remove_unused(folder.supervisor_lock, made)


def _make(folder: Path) -> list[Path]:
    """Make a folder; return what had to be made, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_unused(path: Path, made: list[Path]) -> None:
    """Remove the lock's file where its folder holds nothing else, then the folders that were made for it."""
    with suppress(OSError):  # another command is about to use it
        if os.listdir(path.parent) == [path.name]:
            path.unlink()
        for folder in made:
            folder.rmdir()
