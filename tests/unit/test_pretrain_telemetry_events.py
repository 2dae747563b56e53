"""The log of what happened to a run."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from pretrain.telemetry.events import EventLog


def test_events_are_appended_with_their_time_and_measurements_left_out(tmp_path: Path) -> None:
    path, before = tmp_path / "events.jsonl", datetime.now(UTC)
    EventLog(path).write({"event": "started", "step": 0})
    EventLog(path).write({"event": "validation", "step": 1, "val_ind/loss": 2.0})
    EventLog(path).write({"event": "skipped", "step": 2, "error": "line\nbreak"})
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert {**first, "time": None} == {"time": None, "event": "started", "step": 0}
    assert second["error"] == "line\nbreak"
    times = [datetime.fromisoformat(each["time"]) for each in (first, second)]
    assert (times[0] - before).total_seconds() > -0.001
    assert times[0] <= times[1]
