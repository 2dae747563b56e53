"""What the supervisor refuses before anything starts, and the order of its loop, with fakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cluster.config import RootConfig
from cluster.failures import CommandFailedError
from cluster.run.stop_request import StopRequest
from cluster.run.supervisor import run_to_end, supervise
from data.errors import InputError
from pretrain.config import TrainingConfig
from pretrain.faults.exit_codes import PreemptedError


def never(config: TrainingConfig | RootConfig, *rest: object) -> None:
    raise AssertionError("nothing may start")


def test_weights_that_cannot_be_used_leave_the_run_name_free(tmp_path: Path) -> None:
    config = RootConfig()
    config.run.name, config.run.dir = "mine", str(tmp_path / "runs")
    config.eval.every = 0
    config.checkpointing.start_from = str(tmp_path / "gone")
    with pytest.raises(InputError, match="gone: no committed checkpoint"):
        supervise(config, Console(), never, never)  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()


class FakeRun:
    """Training, evaluations and reporter in one; every call is recorded in order."""

    def __init__(self, train: Callable[[], None] = lambda: None, pending_polls: int = 0) -> None:
        self.calls: list[str] = []
        self._train, self._pending_polls = train, pending_polls
        self._events = [{"event": "restarting"}]

    def run(self) -> None:
        self._train()

    def take_events(self) -> list[dict[str, Any]]:
        events, self._events = self._events, []
        return events

    def request_growth(self) -> None:
        pass

    @property
    def pending(self) -> list[int]:
        return [10] if self._pending_polls > 0 else []

    def poll(self, refresh: bool = False) -> None:
        if refresh:
            self.calls.append("refresh")
        elif "trained" in self.calls:
            self._pending_polls -= 1

    def report_pending(self) -> None:
        self.calls.append("report pending")

    def raise_first_failure(self) -> None:
        self.calls.append("raise first failure")

    def forward_metrics(self) -> None:
        pass

    def event(self, record: dict[str, Any]) -> None:
        self.calls.append(record["event"])


def run_fake(fake: Any, stop: StopRequest) -> None:
    run_to_end(fake, fake, fake, stop, lambda: fake.calls.append("trained"))


@pytest.fixture
def stop(tmp_path: Path) -> StopRequest:
    return StopRequest(tmp_path / ".stop")


def test_evaluations_are_awaited_after_the_training(stop: StopRequest) -> None:
    fake = FakeRun(pending_polls=2)
    run_fake(fake, stop)
    assert fake.calls == ["restarting", "refresh", "trained", "raise first failure"]
    assert fake.pending == []


def test_a_failed_training_reports_the_evaluations_that_have_not_ended(stop: StopRequest) -> None:
    def fail() -> None:
        raise CommandFailedError("rank_00 failed")

    fake = FakeRun(fail, pending_polls=1)
    with pytest.raises(CommandFailedError, match="rank_00 failed"):
        run_fake(fake, stop)
    assert fake.calls == ["restarting", "report pending"]


def test_a_ray_that_has_ended_is_the_cause_of_what_the_training_says(stop: StopRequest) -> None:
    def train() -> None:
        raise InputError("only 0 fit 0 nodes")

    def check_ray() -> None:
        raise CommandFailedError("Ray's raylet has ended")

    def on_trained() -> None:
        raise AssertionError("it has not ended")

    fake: Any = FakeRun(train)
    with pytest.raises(CommandFailedError, match="raylet has ended"):
        run_to_end(fake, fake, fake, stop, on_trained, check_ray)
    assert fake.calls == ["restarting"], "events of the training come first"


def test_a_stop_request_ends_the_wait_for_evaluations(
    stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeRun(pending_polls=1)
    monkeypatch.setattr(stop, "wait", lambda seconds: True)
    with pytest.raises(PreemptedError, match="its evaluations had not"):
        run_fake(fake, stop)
    assert fake.calls == ["restarting", "refresh", "trained", "report pending"]
