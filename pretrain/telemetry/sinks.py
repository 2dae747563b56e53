"""Records of a run and the file that holds them, `metrics.jsonl`.

A record is one JSON object: a step (`{"step": 7, "loss": ...}`) or an event (`{"event": "resumed",
"step": 5, ...}`). Rank 0 writes the file; displays (`pretrain.telemetry.console`, `wandb_sink`) read it back
with `MetricsTail`, so that training never waits for a display.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from data.files import naming_full_disk

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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a `metrics.jsonl`; an empty list when there is none."""
    return MetricsTail(path).new()


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
        return json.loads(line).get("step", 0) if line.endswith(b"\n") else float("inf")
    except ValueError:  # not JSON, or not even text
        return float("inf")


class MetricsTail:
    """Reads the records appended to a `metrics.jsonl` since the last call."""

    def __init__(self, path: Path, from_end: bool = False) -> None:
        """Follow `path`, which need not exist yet; `from_end` skips its present content."""
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def new(self) -> list[dict[str, Any]]:
        """Records of the complete lines appended since; an incomplete line is left for the next call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            self._offset = min(self._offset, size)  # a resume shortened the file; the rest was returned
            file.seek(self._offset)
            text = file.read(size - self._offset)
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines()]
