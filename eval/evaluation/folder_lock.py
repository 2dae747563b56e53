"""The lock of a folder that an evaluation writes to."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data.errors import InputError
from data.locks import LockHeldError, exclusive_lock

LOCK_FILE = ".evaluation.lock"


@contextmanager
def only_evaluation(folder: Path, setting: str = "out") -> Generator[None]:
    """Keep a second evaluation out of a folder for the length of a `with` block: `exclusive_lock`.

    Args:
        folder: The folder.
        setting: Name of the setting that says it, for the message.

    Raises:
        InputError: Another evaluation is writing into the folder.
    """
    with ExitStack() as held:
        try:
            held.enter_context(exclusive_lock(folder / LOCK_FILE))
        except LockHeldError as error:
            raise InputError(
                f"{setting}={folder}: another evaluation is writing into this folder{error.holder}; wait for "
                "it, or choose another folder"
            ) from error
        yield
