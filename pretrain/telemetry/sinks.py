"""Records of a run and the file that holds them, `metrics.jsonl`.

A record is one JSON object: a step (`{"step": 7, "loss": ...}`) or an event (`{"event": "resumed",
"step": 5, ...}`). Rank 0 writes the file; whoever shows them (`pretrain.telemetry.console`, `wandb_sink`)
reads it back with `MetricsTail`, so that training never waits for a display.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

Record = Mapping[str, Any]


class Sink(Protocol):
    """Takes records as they come."""

    def write(self, record: Record) -> None:
        """Take one record."""
        ...

    def close(self) -> None:
        """Finish; nothing is written afterwards."""
        ...


class JsonlSink:
    """Appends records to `metrics.jsonl`, each line complete as soon as it is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one line."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a `metrics.jsonl`; an empty list when there is none."""
    return MetricsTail(path).new()


def drop_after(path: Path, step: int) -> int:
    """Cut the lines of steps beyond `step` off a `metrics.jsonl` and return how many they were.

    The file is shortened in place, so that a reader of its end sees that it shrank.
    """
    if not path.exists():
        return 0
    lines = path.read_bytes().splitlines(keepends=True)
    kept = next((i for i, line in enumerate(lines) if _step_of(line) > step), len(lines))
    os.truncate(path, sum(map(len, lines[:kept])))
    return len(lines) - kept


def _step_of(line: bytes) -> float:
    """The step of a line; a line that was cut short or torn counts as beyond every step."""
    try:
        return json.loads(line).get("step", 0) if line.endswith(b"\n") else float("inf")
    except ValueError:  # not JSON, or not even text
        return float("inf")


class MetricsTail:
    """Reads what was appended to a `metrics.jsonl` since the last look."""

    def __init__(self, path: Path, from_end: bool = False) -> None:
        """Follow `path`, which need not exist yet; `from_end` passes over what it holds now."""
        self._path = path
        self._offset = path.stat().st_size if from_end and path.exists() else 0

    def new(self) -> list[dict[str, Any]]:
        """Records of the complete lines appended since; a half-written line waits for the next look."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            self._offset = min(self._offset, size)  # a resume shortened the file; the rest was given
            file.seek(self._offset)
            text = file.read(size - self._offset)
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines()]
