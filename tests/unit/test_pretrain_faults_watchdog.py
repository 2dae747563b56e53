"""When a step counts as hung: the rule, with a clock of the test's own."""

from __future__ import annotations

import faulthandler

import pytest

from pretrain.faults.watchdog import Watchdog


def test_each_finished_step_starts_the_count_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now, timers = [1000.0], []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda seconds, **_: timers.append(seconds))
    watchdog = Watchdog(100.0, rank=0, clock=lambda: now[0])
    now[0] += 90.0
    assert watchdog.seconds_left == 10.0
    watchdog.after_step(1)
    now[0] += 99.0
    assert watchdog.seconds_left == 1.0
    now[0] += 2.0
    assert watchdog.seconds_left == -1.0
    assert timers == [120.0], "a process that cannot run Python is ended after twice the grace period"


def test_without_a_timeout_no_timer_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: pytest.fail("a timer is set"))
    with Watchdog(0.0, rank=0) as watchdog:
        watchdog.after_step(1)
