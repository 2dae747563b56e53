"""Comparison of ranks, time in collectives, and which steps are traced: the rules, without ranks."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from data.errors import InputError
from pretrain.checks import check_training
from pretrain.config import TelemetryConfig, TrainingConfig
from pretrain.run_folder import RunFolder
from pretrain.telemetry.profiling import StepProfiler
from pretrain.telemetry.ranks import RankReading, StragglerDetector, read_rank, summarise
from pretrain.telemetry.step_timer import StepTimer, StepTimes
from pretrain.telemetry.waits import BlockingWait, kernel_seconds

NAN = float("nan")


def reading(own_time: float, resident: float = 1e9, allocated: float = NAN) -> RankReading:
    return RankReading(own_time, 0.1 * own_time, 0.0, allocated, allocated, resident)


def test_the_slowest_rank_and_its_host_are_named() -> None:
    values = summarise([reading(1.0), reading(1.2, 3e9), reading(1.1)], ["a", "b", "c"], step_time=1.5)
    assert (values["rank_time/slowest_rank"], values["rank_time/slowest_host"]) == (1, "b")
    assert (values["rank_time/p50"], values["rank_time/max"]) == (1.1, 1.2)
    assert values["peer_wait"] == pytest.approx(0.4)
    assert values["data_wait"] == pytest.approx(0.12)
    assert (values["memory/host_resident"], values["memory/host_resident_rank"]) == (3.0, 1)
    assert values["memory/device_allocated"] is values["memory/device_allocated_rank"] is None


def test_values_that_no_rank_could_measure_are_null() -> None:
    values = summarise([reading(NAN), reading(NAN)], ["a", "b"], step_time=1.0)
    assert values["rank_time/p50"] is values["rank_time/slowest_host"] is values["peer_wait"] is None


def test_a_straggler_is_reported_after_three_lines_and_again_once_it_has_caught_up() -> None:
    detector, even, slow = StragglerDetector(), [1.0] * 4, [1.0, 1.0, 1.5, 1.0]
    reported = [detector.update(times, 1.5) for times in (slow, slow, slow, slow, even, slow, slow, slow)]
    assert reported == [[], [], [(2, 0.5)], [], [], [], [], [(2, 0.5)]]


def test_a_fifth_of_a_step_is_not_yet_a_straggler() -> None:
    detector = StragglerDetector()
    assert [detector.update([1.0, 1.0, 1.2], 1.5) for _ in range(4)] == [[]] * 4
    assert [detector.update([NAN, NAN], 1.0) for _ in range(4)] == [[]] * 4


def test_kernels_of_the_step_are_added_up() -> None:
    entries = [
        {"record_id": 7, "duration_ms": 100.0},
        {"record_id": 8, "duration_ms": 20.0},
        {"record_id": 9, "duration_ms": 30.0},
        {"record_id": 10},
    ]
    assert kernel_seconds(entries, after=7) == pytest.approx(0.05)
    assert kernel_seconds(entries, after=9) is None, "none of them was timed"


class _Work:
    """Stands for a collective of torch, without ranks."""

    def __init__(self) -> None:
        self.waited = 0


def test_only_the_thread_that_trains_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    original = dist.Work.wait
    ticks = iter(range(100))
    monkeypatch.setattr("pretrain.telemetry.waits.time.perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(dist.Work, "wait", lambda work: setattr(work, "waited", work.waited + 1))
    counter, work = BlockingWait(), _Work()
    wait = dist.Work.wait
    wait(work)  # type: ignore[arg-type]
    other = threading.Thread(target=wait, args=(work,))
    other.start()
    other.join()
    with counter.paused():
        wait(work)  # type: ignore[arg-type]
    assert counter.read(steps=1) == 1.0
    assert work.waited == 3, "a collective was not waited for"
    assert counter.read(steps=1) == 0.0
    counter.close()
    monkeypatch.undo()
    assert dist.Work.wait is original


def test_own_time_is_the_step_without_waiting_for_peers() -> None:
    times = StepTimes(total=6.0, step=2.0, data_wait=0.25, peer_wait=0.5)
    found = read_rank(times, 1.5, torch.device("cpu"))
    assert (found.own_time, found.data_wait, found.checkpoint_stall) == (1.5, 0.25, 1.5)
    unknown = read_rank(StepTimes(6.0, 2.0, 0.25, None), 1.5, torch.device("cpu"))
    assert math.isnan(unknown.own_time)


def test_a_timer_leaves_out_pauses_and_starts_anew_with_each_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pretrain.telemetry.step_timer.time.perf_counter", lambda: now[0])
    timer = StepTimer(torch.device("cpu"))
    try:
        now[0] += 6.0
        timer.add_data_wait(0.5)
        with timer.paused():
            now[0] += 50.0
        assert timer.read(steps=2) == StepTimes(total=6.0, step=3.0, data_wait=0.25, peer_wait=0.0)
        now[0] += 10.0
        timer.add_data_wait(0.5)
        timer.restart()
        now[0] += 1.0
        assert timer.read(steps=1) == StepTimes(total=1.0, step=1.0, data_wait=0.0, peer_wait=0.0)
    finally:
        timer.close()


def test_each_run_of_consecutive_steps_is_a_trace(tmp_path: Path) -> None:
    reported: list[tuple[int, str]] = []

    def report(name: str, step: int, trace: str) -> None:
        assert name == "profile"
        reported.append((step, Path(trace).name))

    profiler = StepProfiler(tmp_path / "profile", [1, 3, 4], report)
    counts = []
    for step in range(11, 16):  # the process resumes at optimiser step 11
        profiler.before_step(step)
        torch.ones(2).add_(1)
        profiler.after_step(step)
        counts.append(len(reported))
    assert counts == [1, 1, 1, 2, 2]
    assert reported == [(11, "steps_00000011_00000011.json"), (14, "steps_00000013_00000014.json")]
    for _, name in reported:
        assert json.loads((tmp_path / "profile" / name).read_text())["traceEvents"]


def test_closing_in_the_middle_of_a_trace_writes_it(tmp_path: Path) -> None:
    reported: list[str] = []
    profiler = StepProfiler(tmp_path, [1, 2], lambda name, step, trace: reported.append(trace))
    profiler.before_step(1)
    profiler.after_step(1)
    assert reported == []
    profiler.close()
    assert [Path(path).exists() for path in reported] == [True]
    profiler.close()
    assert len(reported) == 1


def test_only_rank_0_traces_and_only_on_request(tmp_path: Path) -> None:
    folder, requested = RunFolder(tmp_path), TelemetryConfig(profile=True, profile_steps=[1])
    for settings, rank in ((TelemetryConfig(profile_steps=[1]), 0), (requested, 1), (requested, 0)):
        assert not folder.path.joinpath("profile").exists()
        profiler = StepProfiler.of(settings, rank, folder, lambda *_, **__: None)
        profiler.before_step(7)
        profiler.after_step(7)
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["steps_00000007_00000007.json"]


def test_steps_that_never_come_are_refused() -> None:
    config = TrainingConfig()
    config.telemetry.profile_steps = [0]
    with pytest.raises(InputError, match=r"telemetry.profile_steps=\[0\], expected steps from 1"):
        check_training(config)
