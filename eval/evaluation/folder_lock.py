"""The lock of a folder that an evaluation writes to."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import InputError
from data.locks import LocksMissingError, lock

LOCK_FILE = ".evaluation.lock"

_LOG = logging.getLogger(__name__)


@contextmanager
def only_evaluation(folder: Path) -> Iterator[None]:
    """Keep a second evaluation out of a folder; the lock ends with the process, however that ends.

    Where the file system has no locks, a warning says that a second evaluation would not be noticed.

    Raises:
        InputError: Another evaluation is writing into the folder.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # a link there may lead to another's file
    with os.fdopen(os.open(folder / LOCK_FILE, flags, 0o666), "r+b") as file:
        try:
            lock(file.fileno(), wait=False)
        except BlockingIOError as error:
            raise InputError(
                f"out={folder}: another evaluation is writing into this folder; wait for it, or choose "
                "another folder"
            ) from error
        except LocksMissingError as error:
            _LOG.warning(
                "%s: its file system has no locks (%s): another evaluation in it would not be noticed",
                folder,
                error.strerror,
            )
        yield
