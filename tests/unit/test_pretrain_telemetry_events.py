"""The log of a run's history, `events.jsonl`."""

from __future__ import annotations

import json
import os
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


def test_a_line_that_a_full_disk_cuts_leaves_no_part_and_follows_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write({"event": "started", "step": 0})
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(events.os, "write", lambda descriptor, line: write(descriptor, line[:9]))
        with pytest.raises(OSError, match="No space left on device"):
            log.write({"event": "skipped", "step": 1})
        log.write_or_keep({"event": "failed", "step": 2})
        log.write_or_keep({"event": "restarting", "step": 3})
        log.write_kept()
    assert len(log_lines(tmp_path)) == 1
    assert [message.split(": ")[1] for message in caplog.messages] == [
        "cannot be written ([Errno 28] No space left on device); it follows when it can"
    ]
    log.write_kept()
    log.write_kept()
    assert [line["event"] for line in log_lines(tmp_path)] == ["started", "failed", "restarting"]


def log_lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
