"""What happens inside the processes that Ray starts: output to a file, failures written down."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from data.errors import InputError
from pretrain.logs import set_up_logging

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a process ended.

    Attributes:
        name: Of the process (`rank_00000`).
        time: Seconds since the epoch.
        user_mistake: Whether it was an `InputError`.
        kind: Name of the exception's class.
        message: Its text.
    """

    name: str
    time: float
    user_mistake: bool
    kind: str
    message: str

    @property
    def headline(self) -> str:
        """Class and first line of the message."""
        lines = self.message.strip().splitlines()
        return f"{self.kind}: {lines[0]}" if lines else self.kind


@contextmanager
def recorded(logs: Path, name: str, rank: int | None = None) -> Iterator[None]:
    """Send this process's output to `logs/<name>.log`; write down an exception that passes through.

    Log messages go there too, with the number of the training rank if there is one.

    The exception goes on its way; its traceback is in the log, its `Failure` in `logs/<name>.failure.json`.
    """
    _redirect_output(logs / f"{name}.log")
    set_up_logging(rank)
    try:
        yield
    except BaseException as error:
        _LOG.exception("%s ended with an error", name)
        note_failure(logs, name, error)
        raise


def note_failure(logs: Path, name: str, error: BaseException) -> None:
    """Write an exception down as this process's `Failure`."""
    failure = Failure(name, time.time(), isinstance(error, InputError), type(error).__name__, str(error))
    (logs / f"{name}.failure.json").write_text(json.dumps(asdict(failure)))


def _redirect_output(path: Path) -> None:
    """Append this process's output, that of libraries in C too, to a file."""
    with path.open("a") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def forget_failures(logs: Path, pattern: str) -> None:
    """Remove the failures of an earlier try."""
    for path in logs.glob(f"{pattern}.failure.json"):
        path.unlink()


def read_failures(logs: Path, pattern: str) -> list[Failure]:
    """Failures written down by the processes whose name matches, the first one first."""
    failures = [Failure(**json.loads(path.read_text())) for path in logs.glob(f"{pattern}.failure.json")]
    return sorted(failures, key=lambda failure: failure.time)
