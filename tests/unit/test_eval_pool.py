"""Simulator workers and policy servers that die, hang or fail change no result of the other episodes."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from data.errors import InputError
from eval.pool import child as child_module
from eval.pool import pool as pool_module
from eval.pool.child import ChildProcess, Heartbeat
from eval.pool.messages import EpisodeSpec, TimeLimits, remote_error
from eval.pool.pool import PolicyFailedError, Pool
from eval.rollout.episode import EpisodeResult, run_episode
from tests.support.fake_suite import (
    MARKS,
    FakePolicySource,
    FaultySimulator,
    ReachingPolicy,
    hung_marker,
    open_fake_suite,
)

GENEROUS = TimeLimits(step=600.0, start=600.0, answer=600.0)  # no machine is too slow for them


def specs(suite: str = "fake", tasks: int = 3, states: int = 4) -> list[EpisodeSpec]:
    return [EpisodeSpec(suite, task, state, 40) for task in range(tasks) for state in range(states)]


def make_pool(
    policy: str = "reaching", workers: int = 2, retries: int = 2, limits: TimeLimits = GENEROUS
) -> Pool:
    source = FakePolicySource(policy)
    return Pool(source, workers, batch=4, retries=retries, limits=limits, open_suite=open_fake_suite)


def pids(*names: str) -> list[int]:
    """Process ids of this process's children of these names."""
    return [child.pid or 0 for child in multiprocessing.active_children() if child.name in names]


def invariants(results: list[EpisodeResult]) -> list[tuple[object, ...]]:
    """Everything that must not depend on which process ran an episode, when, and beside which others."""
    return sorted((r.task, r.initial_state, r.success, r.steps, r.error, r.actions_sha256) for r in results)


def sequential_results() -> list[EpisodeResult]:
    """Every episode in this process, one after the other."""
    return [
        run_episode(FaultySimulator("fake", s.task), ReachingPolicy(), s.initial_state, 40) for s in specs()
    ]


@pytest.fixture
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which the fakes record what has happened."""
    monkeypatch.setenv(MARKS, str(tmp_path))
    return tmp_path


@pytest.fixture
def hung_processes_expire(marks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the deadline of a process pass as soon as it has hung; no other deadline ever passes."""

    def seconds_left(child: ChildProcess) -> float:
        return -1.0 if hung_marker(marks, child.pid).exists() else 600.0

    monkeypatch.setattr(ChildProcess, "seconds_left", property(seconds_left))
    monkeypatch.setattr(pool_module, "_MAX_WAIT", 0.02)  # between two looks at the deadlines


def test_pool_gives_the_same_episodes_as_a_sequential_loop() -> None:
    expected = invariants(sequential_results())
    assert len({row[-1] for row in expected}) > 1
    assert {row[2] for row in expected} == {True, False}
    with make_pool() as pool:
        assert invariants(list(pool.run(specs()))) == expected


@pytest.mark.parametrize("victims", ["worker", "server", "both"])
def test_sigkill_changes_no_result_and_leaves_no_process(victims: str) -> None:
    results, started, killed = [], set(), []
    with make_pool() as pool:
        for result in pool.run(specs()):
            results.append(result)
            started |= {*pids("simulator", "policy-server")}
            if len(results) == 2:
                killed = pids("simulator")[:1] if victims != "server" else []
                killed += pids("policy-server") if victims != "worker" else []
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
        assert len(killed) == (2 if victims == "both" else 1)
        assert set(killed).isdisjoint(pids("simulator", "policy-server"))
        assert started > set(killed)
    assert invariants(results) == invariants(sequential_results())
    assert not any(psutil.pid_exists(pid) for pid in started)


@pytest.mark.usefixtures("hung_processes_expire")
def test_hung_simulator_is_replaced_and_the_others_continue() -> None:
    with make_pool() as pool:
        results = list(pool.run(specs("fake_hangs", tasks=2)))
    assert len(results) == 8
    (hung,) = [result for result in results if result.error is not None]
    assert (hung.task, hung.initial_state, hung.attempts, hung.success) == (1, 1, 3, False)
    assert hung.error == "the simulator hung; its time limit ended it"


def test_step_limit_ends_a_hung_simulator() -> None:
    # One episode, which never ends: a machine too slow for the limit gets the same result.
    limits = TimeLimits(step=0.3, start=600.0, answer=600.0)
    with make_pool(workers=1, retries=0, limits=limits) as pool:
        (result,) = pool.run([EpisodeSpec("fake_hangs", 1, 1, 40)])
    assert (result.error, result.attempts) == ("the simulator hung; its time limit ended it", 1)


@pytest.mark.usefixtures("hung_processes_expire")
def test_hung_policy_server_is_replaced(marks: Path) -> None:
    with make_pool("hanging_once") as pool:
        assert invariants(list(pool.run(specs()))) == invariants(sequential_results())
    assert len(list(marks.glob("hung_*"))) == 1


def test_answer_limit_ends_a_hung_policy_server() -> None:
    # No server ever answers: a machine too slow for the limit gets the same result.
    limits = TimeLimits(step=600.0, start=600.0, answer=0.1)
    with (
        make_pool("hanging", workers=1, limits=limits) as pool,
        pytest.raises(InputError, match=r"died 3 times .*\(no answer within answer_seconds=0\.1\), too slow"),
    ):
        list(pool.run(specs()))


def test_heartbeat_moves_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(child_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    deadline: Any = SimpleNamespace(value=0.0)
    heartbeat = Heartbeat(deadline, interval=5.0)
    heartbeat.beat()
    assert deadline.value == 105.0
    heartbeat.extend(60.0)
    assert deadline.value == 160.0
    heartbeat.pause()
    assert deadline.value == math.inf
    clock.now = 200.0
    heartbeat.beat()
    assert deadline.value == 205.0


def test_process_is_late_only_after_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(child_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    child = ChildProcess(wait_for_end, (), "waiting", timeout=7.0)
    try:
        assert child.seconds_left == 7.0
        clock.now = 108.0
        assert child.seconds_left == -1.0
        child.extend(3.0)
        assert child.seconds_left == 3.0
    finally:
        assert child.kill() == "SIGKILL"


def wait_for_end(connection: Any, deadline: Any) -> None:
    connection.recv()


def test_episode_that_always_kills_its_process_is_an_error_after_three_attempts() -> None:
    with make_pool() as pool:
        results = list(pool.run(specs("fake_dies", tasks=2)))
    (died,) = [result for result in results if result.error is not None]
    assert (died.task, died.initial_state, died.attempts) == (1, 1, 3)
    assert died.error == "the simulator's process died (exit code 7)"


def test_simulator_error_is_retried(marks: Path) -> None:
    with make_pool("expert") as pool:
        results = list(pool.run(specs("fake_breaks", tasks=2)))
    assert (marks / "broken").exists()
    assert [result.error for result in results] == [None] * 8
    assert {(r.task, r.initial_state): r.attempts for r in results if r.attempts > 1} == {(1, 1): 2}


def test_a_full_disk_in_a_worker_is_the_users_to_empty() -> None:
    message = remote_error(OSError(28, "No space left on device", "/tmp/libero/config.yaml"))
    assert message.is_input_error
    assert message.message.startswith("/tmp/libero/config.yaml: cannot be written (No space left on device)")
    assert not remote_error(OSError(5, "Input/output error")).is_input_error


def test_missing_assets_of_one_task_leave_the_others() -> None:
    with make_pool() as pool:
        results = list(pool.run(specs("fake_incomplete")))
    errors = {(r.task, r.initial_state): r.error for r in results if r.error is not None}
    assert errors == {(1, state): "task 1: an asset is missing" for state in range(4)}


def test_missing_assets_of_all_tasks_are_an_input_error() -> None:
    with make_pool() as pool, pytest.raises(InputError, match="task 0: an asset is missing"):
        list(pool.run(specs("fake_empty", tasks=1)))


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        ("unusable", InputError, "^no tokenizer there$"),
        ("dying", InputError, r"policy server died 3 times .*exit code 9"),
        ("failing", PolicyFailedError, "ZeroDivisionError: the network fell over"),
    ],
)
def test_policy_that_cannot_act_is_explained(policy: str, error: type[Exception], message: str) -> None:
    with make_pool(policy) as pool, pytest.raises(error, match=message):
        list(pool.run(specs()))


def test_chunk_longer_than_the_horizon_is_refused() -> None:
    with (
        make_pool() as pool,
        pytest.raises(InputError, match="chunks of 2 steps, longer than the horizon of 1"),
    ):
        list(pool.run([EpisodeSpec("fake", 0, 0, 1)]))


@pytest.mark.parametrize(("configured", "expected"), [(None, "1"), ("3", "3")])
def test_every_process_computes_with_one_thread_unless_configured(
    configured: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if configured is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", configured)
    with make_pool() as pool:
        next(iter(pool.run(specs())))
        running = pids("simulator", "policy-server")
        num_threads = [psutil.Process(pid).environ()["OMP_NUM_THREADS"] for pid in running]
    assert num_threads == [expected] * 3
    assert os.environ.get("OMP_NUM_THREADS") == configured
