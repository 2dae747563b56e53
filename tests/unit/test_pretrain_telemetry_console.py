"""Progress for an operator: steps and events, on a terminal and in a log file."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pretrain.telemetry import progress
from pretrain.telemetry.console import ConsoleSink, describe, describe_event

RECORD = {
    "step": 3,
    "loss": 2.5,
    "loss_action": 3.0,
    "accuracy_action": 0.25,
    "action_l1": 0.125,
    "loss_image": None,
    "accuracy_image": None,
    "gradient_norm": 1.25,
    "skipped_steps": 0,
    "tokens_per_second": 1234.5,
    "mfu": 0.4,
    "step_time": 2.0,
    "data_wait": 0.002,
    "peer_wait": 0.5,
    "memory/device_reserved": None,
}


def test_a_terminal_shows_a_bar_and_events_above_it() -> None:
    out = io.StringIO()
    sink = ConsoleSink(10, Console(file=out, force_terminal=True, width=200))
    sink.write({"event": "started", "step": 0, "checkpoint": "weights[/]"})
    sink.write(RECORD)
    sink.close()
    assert "started at step 0: checkpoint weights[/]" in out.getvalue()
    assert "loss 2.500 · action 3.000 (25%) · 1,234 tok/s · MFU 40% · 2 s/step · norm 1.25" in out.getvalue()


def test_a_log_file_gets_a_line_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])
    out = io.StringIO()
    sink = ConsoleSink(5, Console(file=out))
    for step, seconds in ((1, 0.0), (2, 9.0), (3, 11.0), (4, 12.0), (5, 13.0)):
        now[0] = seconds
        sink.write({**RECORD, "step": step})
    sink.close()
    shown = [line.split(" loss")[0] for line in out.getvalue().splitlines() if line.startswith("  train")]
    assert shown == ["  train 1/5", "  train 3/5", "  train 5/5"]


def test_a_step_shows_measured_values_and_waiting() -> None:
    assert describe(RECORD).endswith("L1 0.125 · peers 25%"), "0.1 % of waiting for data is not shown"
    line = describe({**RECORD, "skipped_steps": 2, "data_wait": 1.0, "memory/device_reserved": 70.25})
    assert line.endswith("70.2 GB on GPU · data 50% · peers 25% · 2 skipped")
    assert describe({**RECORD, "loss": None}).startswith("loss not finite")


def test_events_are_sentences() -> None:
    layouts = {"parallel_before": {"tensor": 2, "data": 2}, "parallel": {"tensor": 1, "data": 2}}
    assert describe_event({"event": "resumed", "step": 2, "checkpoint": "c", **layouts}) == (
        "resumed at step 2: saved at tensor 2 x data 2, going on at tensor 1 x data 2"
    )
    validation = {"val_ind/loss": 2.0, "val_ind/loss_action": 3.0, "val_ind/loss_image": None}
    assert describe_event({"event": "validation", "step": 4, "seconds": 1.5, **validation}) == (
        "validation at step 4: val_ind loss 2.000 (action 3.000) (1.5 s)"
    )
    straggler = {"rank": 3, "host": "node7", "seconds_above_median": 0.5, "data_wait": 0.01}
    assert describe_event({"event": "straggler", "step": 9, **straggler}) == (
        "straggler at step 9: rank 3 on node7 needs 0.5 s a step more than the median rank; it waits 0.01 s "
        "a step for data"
    )
    assert describe_event({"event": "profile", "step": 5, "trace": "p/s.json"}) == (
        "profile at step 5: trace in p/s.json"
    )
