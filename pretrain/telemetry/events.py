"""History of a run from its first start on: one JSON object a line in `events.jsonl`.

`metrics.jsonl` follows the training's steps and is cut when the run goes back to a checkpoint. This file only
grows: starts, skipped steps, checkpoints that could not be written, failures and restarts, each with the time
of day. Trainer and supervisor both append to it; each line is one write, so that their lines do not mix.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_MEASUREMENTS = ("validation",)  # numbers of a step, which belong to metrics.jsonl alone


class EventLog:
    """Appends events to a file.

    Args:
        path: `events.jsonl` of a run folder; created with the first event.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, event: Mapping[str, Any]) -> None:
        """Append `{"time": ..., **event}`; the time is UTC, to the millisecond.

        Args:
            event: Details, with the name under `event`. Measurements are left out.
        """
        if event["event"] in _MEASUREMENTS:
            return
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
