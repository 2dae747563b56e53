"""Ranks beside each other, time in collectives, and which steps are traced: the rules, without ranks."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from data.errors import InputError
from pretrain.telemetry.profiling import StepProfiler
from pretrain.telemetry.ranks import Reading, Stragglers, summarise
from pretrain.telemetry.waits import BlockingWait, kernel_seconds

NAN = float("nan")


def reading(own_time: float, resident: float = 1e9, allocated: float = NAN) -> Reading:
    return Reading(own_time, 0.1 * own_time, 0.0, allocated, allocated, resident)


def test_the_slowest_rank_and_its_host_are_named() -> None:
    found = summarise([reading(1.0), reading(1.2, 3e9), reading(1.1)], ["a", "b", "c"], step_time=1.5)
    assert (found["rank_time/slowest_rank"], found["rank_time/slowest_host"]) == (1, "b")
    assert (found["rank_time/p50"], found["rank_time/max"]) == (1.1, 1.2)
    assert found["peer_wait"] == pytest.approx(0.4)
    assert found["data_wait"] == pytest.approx(0.12)
    assert (found["memory/host_resident"], found["memory/host_resident_rank"]) == (3.0, 1)
    assert found["memory/device_allocated"] is found["memory/device_allocated_rank"] is None


def test_what_no_rank_could_time_is_left_open() -> None:
    found = summarise([reading(NAN), reading(NAN)], ["a", "b"], step_time=1.0)
    assert found["rank_time/p50"] is found["rank_time/slowest_host"] is found["peer_wait"] is None


def test_a_straggler_is_named_after_three_lines_and_again_once_it_has_caught_up() -> None:
    stragglers, even, slow = Stragglers(), [1.0] * 4, [1.0, 1.0, 1.5, 1.0]
    named = [stragglers.new(times, 1.5) for times in (slow, slow, slow, slow, even, slow, slow, slow)]
    assert named == [[], [], [(2, 0.5)], [], [], [], [], [(2, 0.5)]]


def test_a_fifth_of_a_step_is_not_yet_a_straggler() -> None:
    stragglers = Stragglers()
    assert [stragglers.new([1.0, 1.0, 1.2], 1.5) for _ in range(4)] == [[]] * 4
    assert [stragglers.new([NAN, NAN], 1.0) for _ in range(4)] == [[]] * 4


def test_kernels_of_the_step_are_added_up() -> None:
    entries = [
        {"record_id": 7, "duration_ms": 100.0},
        {"record_id": 8, "duration_ms": 20.0},
        {"record_id": 9, "duration_ms": 30.0},
        {"record_id": 10},
    ]
    assert kernel_seconds(entries, after=7) == pytest.approx(0.05)
    assert kernel_seconds(entries, after=9) is None, "not one of them was timed"


class _Work:
    """What `Work.wait` is asked for, without ranks."""

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


def test_each_unbroken_row_of_steps_is_a_trace(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path / "profile", [1, 3, 4])
    written = []
    for step in range(11, 16):  # the process goes on at optimiser step 11
        profiler.begin(step)
        torch.ones(2).add_(1)
        written.append(profiler.end())
    names = [path.name if path else None for path in written]
    assert names == ["steps_00000011_00000011.json", None, None, "steps_00000013_00000014.json", None]
    for path in filter(None, written):
        assert json.loads(path.read_text())["traceEvents"]


def test_an_end_in_the_middle_writes_what_was_traced(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, [1, 2])
    profiler.begin(1)
    assert profiler.end() is None
    path = profiler.close()
    assert path is not None
    assert path.exists()
    assert profiler.close() is None
    with pytest.raises(InputError, match=r"telemetry.profile_steps=\[0\], expected steps from 1"):
        StepProfiler(tmp_path, [0])
