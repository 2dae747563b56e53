from __future__ import annotations

import io

import pytest
from rich.console import Console

from pretrain.telemetry import progress
from pretrain.telemetry.progress import ProgressDisplay, SpeedEstimate


def test_without_a_terminal_a_bar_prints_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000, 2000, 4))  # seconds: one reading per update
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    shown = io.StringIO()
    with ProgressDisplay(Console(file=shown)) as display:
        bar = display.bar("train", 20)
        for step in range(1, 21):
            bar.update(step, detail=f"loss {step}")
        bar.update(20, detail="loss 20")
    lines = [f"  train {step}/20 loss {step}" for step in (1, 4, 7, 10, 13, 16, 19, 20)]
    assert shown.getvalue().splitlines() == lines


def test_on_a_terminal_a_bar_shows_count_and_detail() -> None:
    shown = io.StringIO()
    with ProgressDisplay(Console(file=shown, force_terminal=True, width=120)) as display:
        display.bar("collect", 3).update(2, detail="demonstrations")
    assert "2/3" in shown.getvalue()
    assert "demonstrations" in shown.getvalue()


def test_a_total_may_be_given_later() -> None:
    shown = io.StringIO()
    with ProgressDisplay(Console(file=shown)) as display:
        bar = display.bar("prepare")
        bar.update(0, detail="reading")
        bar.update(5, 5)
    assert shown.getvalue().splitlines() == ["  prepare 0 reading", "  prepare 5/5"]


def test_speed_is_that_of_the_last_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 20.0, 45.0, 50.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    speed = SpeedEstimate("episodes")
    texts = [speed.update(done, 400) for done in (0, 200, 200, 220, 245, 250)]
    assert texts == [
        "episodes",  # nothing to compare with
        "episodes, 200.0/s, 1 s left",
        "episodes, 20.0/s, 10 s left",
        "episodes, 11.0/s, 16 s left",
        "episodes, 1.0/s, 3 min left",  # since second 20: the first 200 are outside the window
        "episodes, 1.0/s, 2 min left",
    ]
