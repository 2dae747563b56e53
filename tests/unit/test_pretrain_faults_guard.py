"""Which steps are bad, and that the guard of a resumed run judges as that of an uninterrupted one."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data.errors import InputError
from pretrain.checks import check_training
from pretrain.config import GuardConfig, TrainingConfig
from pretrain.faults.guard import GuardState, StepGuard

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def world(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/world", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run(guard: StepGuard, losses: list[float], first: int = 1, stop: bool = False) -> list[bool]:
    """Judge and record one step for each loss; return which were bad."""
    bad = []
    for step, value in enumerate(losses, first):
        loss, norm = torch.tensor(value), torch.tensor(1.0)
        skipped = guard.judge(loss, norm)
        result: Any = SimpleNamespace(loss=loss, gradient_norm=norm, skipped=skipped)
        guard.record(step, result, stop)
        bad.append(bool(skipped))
    return bad


def test_without_a_limit_only_values_that_are_not_finite_are_bad() -> None:
    guard = StepGuard(GuardConfig(spike=None), CPU)
    assert run(guard, [1.0, 1e30, math.nan, math.inf, 0.5]) == [False, False, True, True, False]
    assert bool(guard.judge(torch.tensor(1.0), torch.tensor(math.inf)))


def test_mean_and_variance_are_those_of_the_good_steps() -> None:
    guard = StepGuard(GuardConfig(memory=10), CPU)
    losses = [3.0, 2.5, 2.75, 2.0, 2.2]
    run(guard, [*losses[:2], math.nan, *losses[2:]])
    state = guard.state()
    assert state.mean == pytest.approx(statistics.fmean(losses), rel=1e-6)
    assert state.variance == pytest.approx(statistics.pvariance(losses), rel=1e-6)
    assert (state.good, state.skipped, state.in_a_row) == (5, 1, 0)


def test_a_spike_is_bad_once_the_memory_is_full_and_does_not_widen_the_limit() -> None:
    guard = StepGuard(GuardConfig(spike=4.0, memory=4), CPU)
    usual = [1.0, 1.1, 0.9, 1.0]
    assert run(guard, [1.0, 9.0, 0.9]) == [False, False, False], "too few to know"
    guard = StepGuard(GuardConfig(spike=4.0, memory=4), CPU)
    assert run(guard, [*usual, 1.2, 1.5, 1.5, 1.0]) == [False] * 5 + [True, True, False]
    assert not bool(guard.judge(torch.tensor(-50.0), torch.tensor(1.0))), "a small loss is no spike"


def test_steps_from_a_missing_batch_on_are_discarded_and_change_nothing() -> None:
    guard = StepGuard(GuardConfig(spike=4.0, memory=4), CPU)
    run(guard, [1.0, 1.1, math.nan])
    before, _ = guard.state(), guard.verdicts(newest=True)
    assert not guard.knows_stop
    guard.discard_from_now()
    assert run(guard, [0.9, math.nan], first=4) == [True, True]
    assert guard.state() == before
    assert guard.knows_stop
    verdicts = guard.verdicts(newest=True)
    assert [(v.step, v.discarded, v.skipped, v.in_a_row) for v in verdicts] == [
        (4, True, False, 1),
        (5, True, False, 1),
    ]
    guard.restore(GuardState())
    assert run(guard, [1.0]) == [True], "a rollback brings no batch back"


def test_old_losses_are_forgotten() -> None:
    guard = StepGuard(GuardConfig(memory=5), CPU)
    run(guard, [100.0] * 5 + [1.0, 1.2] * 40)
    assert guard.state().mean == pytest.approx(1.1, abs=0.1)


def test_verdicts_are_one_step_late_unless_the_newest_is_requested() -> None:
    guard = StepGuard(GuardConfig(), CPU)
    run(guard, [1.0, math.nan, math.nan])
    assert [(f.step, f.skipped, f.in_a_row) for f in guard.verdicts()] == [(1, False, 0), (2, True, 1)]
    (last,) = guard.verdicts(newest=True)
    assert (last.step, last.in_a_row, last.stop) == (3, 2, False)
    assert math.isnan(last.loss)
    run(guard, [1.0], first=4, stop=True)
    (last,) = guard.verdicts(newest=True)
    assert (last.step, last.in_a_row, last.stop) == (4, 0, True)


def test_a_restored_guard_continues_bit_for_bit() -> None:
    settings = GuardConfig(spike=3.0, memory=4)
    first, second = [1.0, 1.3, 0.7, 1.1, 1.05, math.nan], [1.6, 1.2, 3.0, 0.9]
    whole = StepGuard(settings, CPU)
    run(whole, first)
    stored = json.loads(json.dumps({"guard": whole.state().to_json()}))
    resumed = StepGuard(settings, CPU, GuardState.from_metadata(stored))
    assert run(resumed, second) == run(whole, second)
    assert resumed.state() == whole.state()
    assert resumed.state().skipped > 1


def test_a_state_of_another_version_is_an_input_error() -> None:
    assert GuardState.from_metadata({}) == GuardState()
    with pytest.raises(InputError, match="expected the keys offset, rollbacks"):
        GuardState.from_metadata({"guard": {"seen": 3}})


@pytest.mark.parametrize(
    ("name", "value"), [("spike", 0.5), ("memory", 1), ("bad_steps", 0), ("rollbacks", -1)]
)
def test_invalid_settings_are_refused(name: str, value: float) -> None:
    config = TrainingConfig()
    setattr(config.guard, name, value)
    with pytest.raises(InputError, match=rf"guard\.{name}={value}, expected"):
        check_training(config)
