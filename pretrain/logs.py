"""Log messages of this project: one line each on standard error, with time, rank, level and module.

    2026-01-31 12:00:00 rank 3 WARNING data.storage.retries: s3://bucket: connection refused; ...

Every module logs to `logging.getLogger(__name__)`. Only the loggers of this project's packages are set up:
libraries stay as quiet as they are by themselves. The environment variable WORLDVLA_LOG_LEVEL (default INFO)
chooses the least level that is shown.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from data.errors import InputError

LEVEL_VARIABLE = "WORLDVLA_LOG_LEVEL"
PACKAGES = ("data", "pretrain", "eval", "cluster")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_TIME = "%Y-%m-%d %H:%M:%S"


def replace_unencodable_output() -> None:
    """Print "?" instead of a character that the encoding of standard output (ASCII, say) does not have."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def set_up_logging(rank: int | None = None) -> None:
    """Show the messages of this process on standard error; a second call replaces the first one's settings.

    Args:
        rank: Number of this training process, shown in each line; None for a process that is no rank.

    Raises:
        InputError: WORLDVLA_LOG_LEVEL is not the name of a level.
    """
    level = os.environ.get(LEVEL_VARIABLE, "INFO").upper()
    if level not in _LEVELS:
        raise InputError(f"{LEVEL_VARIABLE}={level}, expected one of {', '.join(_LEVELS)}; correct it")
    handler = _StandardErrorHandler()
    handler.setFormatter(_formatter(rank))
    for package in PACKAGES:
        logger = logging.getLogger(package)
        for old in list(logger.handlers):
            logger.removeHandler(old)
            old.close()
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False  # a library may have given the root logger a handler of its own


def log_to_file(path: Path, rank: int) -> None:
    """Append the messages of this process to a file as well; its folder is made.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot write the log ({error.strerror}); set run.dir to a folder you may write to, or "
            "free space"
        ) from error
    handler.setFormatter(_formatter(rank))
    for package in PACKAGES:
        logging.getLogger(package).addHandler(handler)


def _formatter(rank: int | None) -> logging.Formatter:
    process = "" if rank is None else f"rank {rank} "
    return logging.Formatter(f"%(asctime)s {process}%(levelname)s %(name)s: %(message)s", _TIME)


class _StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a message arrives: it may be redirected after the set-up."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """Standard error."""
        return sys.stderr
