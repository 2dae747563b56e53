from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster import console
from cluster.console import Board, Pace


def test_without_a_terminal_a_bar_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))  # seconds: four between two looks at the clock
    monkeypatch.setattr(console, "monotonic", lambda: 1000 + next(clock))
    shown = io.StringIO()
    with Board(Console(file=shown)) as board:
        bar = board.bar("train", 20)
        for step in range(1, 21):
            bar.update(step, note=f"loss {step}")
        bar.update(20, note="loss 20")
    lines = shown.getvalue().splitlines()
    assert lines[0] == "  train 1/20 loss 1"
    assert lines[-1] == "  train 20/20 loss 20"
    assert 4 < len(lines) < 12


def test_on_a_terminal_a_bar_shows_count_and_note() -> None:
    shown = io.StringIO()
    with Board(Console(file=shown, force_terminal=True, width=120)) as board:
        board.bar("collect", 3).update(2, note="demonstrations")
    assert "2/3" in shown.getvalue()
    assert "demonstrations" in shown.getvalue()


def test_a_total_may_come_later() -> None:
    shown = io.StringIO()
    with Board(Console(file=shown)) as board:
        bar = board.bar("prepare")
        bar.update(0, note="reading")
        bar.update(5, 5)
    assert shown.getvalue().splitlines() == ["  prepare 0 reading", "  prepare 5/5"]


def test_pace_is_that_of_the_last_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 20.0, 45.0, 50.0])
    monkeypatch.setattr(console, "monotonic", lambda: next(clock))
    pace = Pace("episodes")
    notes = [pace.note(done, 400) for done in (0, 200, 200, 220, 245, 250)]
    assert notes == [
        "episodes",  # nothing to compare with
        "episodes, 200.0/s, 1 s left",
        "episodes, 20.0/s, 10 s left",
        "episodes, 11.0/s, 16 s left",
        "episodes, 1.0/s, 3 min left",  # since second 20: the 200 that were there already are forgotten
        "episodes, 1.0/s, 2 min left",
    ]
