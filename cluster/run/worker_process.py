"""Processes that Ray starts: their working folder, their log file and a record of their failure."""

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

from cluster.resources.environment import clean_worker
from data.errors import InputError
from data.files import write_text_whole
from pretrain.logs import set_up_logging

_LOG = logging.getLogger(__name__)
_SUFFIX = ".failure.json"


@dataclass(frozen=True, slots=True)
class FailureRecord:
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

    @classmethod
    def of(cls, name: str, error: BaseException, time: float) -> FailureRecord:
        """Describe the exception that ended a process."""
        return cls(name, time, isinstance(error, InputError), type(error).__name__, str(error))

    @classmethod
    def read(cls, path: Path) -> FailureRecord:
        """Read a record.

        Raises:
            OSError, ValueError, TypeError, KeyError: It cannot be read, or is none.
        """
        values = json.loads(path.read_text("utf-8"))
        name, kind, message = (str(values[key]) for key in ("name", "kind", "message"))
        return cls(name, float(values["time"]), values["user_mistake"] is True, kind, message)

    @property
    def headline(self) -> str:
        """Class and first line of the message."""
        lines = self.message.strip().splitlines()
        return f"{self.kind}: {lines[0]}" if lines else self.kind


def enter_worker(folder: str, gpus: float | None = None) -> None:
    """Begin the work of a process that Ray has started; before it imports torch or a simulator.

    Relative paths of the settings then mean what they mean to the command, where its folder exists: a node of
    an existing cluster starts its processes in the folder in which it was started itself.

    Args:
        folder: Working folder of the command.
        gpus: GPUs that the process was given; None: as Ray has set it.
    """
    clean_worker(gpus)
    if os.path.isdir(folder):
        os.chdir(folder)


@contextmanager
def log_process(logs: Path, name: str, rank: int | None = None) -> Iterator[None]:
    """Append this process's output to `logs/<name>.log`; record an exception that leaves the block.

    Log messages go there too, with the number of the training rank if there is one. The exception is raised
    again; its traceback is in the log, its `FailureRecord` in `logs/<name>.failure.json`.
    """
    _redirect_output(logs / f"{name}.log")
    set_up_logging(rank)
    try:
        yield
    except BaseException as error:
        _LOG.exception("%s ended with an error", name)
        write_failure(logs, name, error)
        raise


def _redirect_output(path: Path) -> None:
    """Append this process's output, including that of C libraries, to a file."""
    with path.open("ab") as log:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def write_failure(logs: Path, name: str, error: BaseException) -> bool:
    """Write the failure record of this process as a whole; return whether the disk has taken it."""
    record = FailureRecord.of(name, error, time.time())
    try:
        write_text_whole(logs / f"{name}{_SUFFIX}", json.dumps(asdict(record)))
    except OSError as refusal:  # Ray has the exception too
        _LOG.warning("the failure record of %s cannot be written (%s)", name, refusal)
        return False
    return True


def remove_failures(logs: Path, pattern: str) -> None:
    """Remove the failure records of an earlier start; `pattern` is a glob of process names."""
    for path in logs.glob(f"{pattern}{_SUFFIX}"):
        path.unlink()


def read_failures(logs: Path, pattern: str) -> list[FailureRecord]:
    """Failure records of the processes whose name matches the glob `pattern`, the earliest first.

    A file that is no record, as a crash of a machine can leave it, is left out with a warning.
    """
    records: list[FailureRecord] = []
    for path in logs.glob(f"{pattern}{_SUFFIX}"):
        try:
            records.append(FailureRecord.read(path))
        except (OSError, ValueError, TypeError, KeyError) as error:
            _LOG.warning("%s: is no failure record (%s); left out", path, error)
    return sorted(records, key=lambda record: record.time)
