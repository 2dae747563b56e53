"""The log of a run's history, `events.jsonl`."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path

import pytest

from pretrain.telemetry import events
from pretrain.telemetry.events import EventLog

FIRST = datetime(2026, 1, 31, 23, 59, 58, 123_456, timezone(timedelta(hours=2)))


def test_events_are_appended_with_their_time_and_measurements_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, times = tmp_path / "events.jsonl", iter([FIRST, FIRST + timedelta(seconds=2)])

    class Clock:
        """Gives the times above, in the requested zone, or without a zone as `datetime` does."""

        @staticmethod
        def now(zone: tzinfo | None = None) -> datetime:
            return next(times).astimezone(zone) if zone else next(times).replace(tzinfo=None)

    monkeypatch.setattr(events, "datetime", Clock)
    EventLog(path).write({"event": "started", "step": 0})
    EventLog(path).write({"event": "validation", "step": 1, "val_ind/loss": 2.0})
    EventLog(path).write({"event": "skipped", "step": 2, "error": "line\nbreak"})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"time": "2026-01-31T21:59:58.123+00:00", "event": "started", "step": 0},
        {"time": "2026-01-31T22:00:00.123+00:00", "event": "skipped", "step": 2, "error": "line\nbreak"},
    ]
