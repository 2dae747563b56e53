"""Records of a run and the file that holds them, `metrics.jsonl`.

A record is one JSON object: a step (`{"step": 7, "loss": ...}`) or an event (`{"event": "resumed",
"step": 5, ...}`). Rank 0 writes the file; displays (`pretrain.telemetry.console`, `wandb_sink`) read it back
with `MetricsTail`, so that training never waits for a display.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from data.errors import InputError
from data.files import naming_full_disk

_LOG = logging.getLogger(__name__)

Record = Mapping[str, Any]


class Sink(Protocol):
    """Receives records one by one."""

    def write(self, record: Record) -> None:
        """Show or store one record."""
        ...

    def close(self) -> None:
        """Finish; no record follows."""
        ...


class JsonlSink:
    """Appends records to `metrics.jsonl`, each line complete as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one line.

        Raises:
            OSError: It cannot be written.
        """
        with naming_full_disk(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file.

        Raises:
            OSError: What was not on the disk yet cannot be written.
        """
        with naming_full_disk(self._path):
            self._file.close()


def read_metrics(path: Path, skip_damaged: bool = False) -> list[dict[str, Any]]:
    """All complete lines of a `metrics.jsonl`; an empty list when there is none.

    Args:
        path: The file.
        skip_damaged: As in `MetricsTail`.

    Raises:
        InputError: A line is no record.
    """
    return MetricsTail(path, skip_damaged=skip_damaged).new()


def drop_after(path: Path, step: int) -> int:
    """Remove the lines of steps after `step` from a `metrics.jsonl` and return their number.

    The file is shortened in place, so that a `MetricsTail` notices it.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    count = next((i for i, line in enumerate(lines) if _step_of(line) > step), len(lines))
    os.truncate(path, sum(map(len, lines[:count])))
    return len(lines) - count


def _step_of(line: bytes) -> float:
    """The step of a line; infinite for a line that is incomplete or damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):  # not JSON, or not even text
        return float("inf")
    is_whole = line.endswith(b"\n") and isinstance(record, dict)
    return record.get("step", 0) if is_whole else float("inf")


class MetricsTail:
    """Reads the records appended to a `metrics.jsonl` since the last call.

    Args:
        path: The file; it need not exist yet.
        from_end: Skip its present content.
        skip_damaged: Log a line that is no record, and leave it out; else it is an error.
    """

    def __init__(self, path: Path, from_end: bool = False, skip_damaged: bool = False) -> None:
        self._path, self._skip_damaged = path, skip_damaged
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def new(self) -> list[dict[str, Any]]:
        """Records of the complete lines appended since; an incomplete line is left for the next call.

        Raises:
            InputError: A line is no record.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            self._offset = min(self._offset, size)  # a resume shortened the file; the rest was returned
            file.seek(self._offset)
            text = file.read(size - self._offset)
        complete = text[: text.rfind(b"\n") + 1]
        begin, self._offset = self._offset, self._offset + len(complete)
        records = []
        for line in complete.split(b"\n"):
            if line.strip() and (record := self._parse(line, begin)) is not None:
                records.append(record)
            begin += len(line) + 1
        return records

    def _parse(self, line: bytes, begin: int) -> dict[str, Any] | None:
        """The record of a line that begins at a byte of the file; None: damaged, and left out."""
        try:
            record = json.loads(line)
            if isinstance(record, dict) and ("event" in record or isinstance(record.get("step"), int)):
                return record
            cause = "neither a step nor an event"
        except (ValueError, RecursionError) as error:  # not JSON, or not even text
            cause = str(error)
        message = f"{self._path}: the line at byte {begin} is no record ({cause})"
        if not self._skip_damaged:
            raise InputError(f"{message}; delete that line")
        _LOG.warning("%s; it is left out", message)
        return None
