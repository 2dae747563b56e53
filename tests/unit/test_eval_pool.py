"""Simulator workers and policy servers that die, hang or break change no result of the other episodes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from data.errors import InputError
from eval.pool.messages import EpisodeSpec, TimeLimits
from eval.pool.pool import PolicyFailedError, Pool
from eval.rollout.episode import EpisodeResult, run_episode
from tests.support.fake_suite import MARKS, Reaching, Source, Troubled, open_fake_suite


def specs(suite: str = "fake", tasks: int = 3, states: int = 4) -> list[EpisodeSpec]:
    return [EpisodeSpec(suite, task, state, 40) for task in range(tasks) for state in range(states)]


def pool(policy: str = "reaching", workers: int = 2, seconds: float = 0.0, step: float = 30.0) -> Pool:
    limits = TimeLimits(step=step, start=60.0, answer=30.0)
    return Pool(Source(policy, seconds), workers, batch=4, limits=limits, open_suite=open_fake_suite)


def essence(results: list[EpisodeResult]) -> list[tuple[object, ...]]:
    """All that must not depend on who ran an episode, when, and beside what."""
    return sorted((r.task, r.initial_state, r.success, r.steps, r.error, r.actions_sha256) for r in results)


def alone() -> list[EpisodeResult]:
    """Every episode in this process, one after the other."""
    return [run_episode(Troubled("fake", s.task), Reaching(), s.initial_state, 40) for s in specs()]


def test_episodes_of_a_pool_are_those_of_a_plain_loop() -> None:
    expected = essence(alone())
    assert len({row[-1] for row in expected}) > 1
    assert {row[2] for row in expected} == {True, False}
    with pool() as running:
        assert essence(list(running.run(specs()))) == expected


@pytest.mark.parametrize("who", ["worker", "server", "both"])
def test_kill_9_changes_no_result_and_leaves_no_process(who: str) -> None:
    results, seen = [], set()
    with pool(seconds=0.02) as running:
        for result in running.run(specs()):
            results.append(result)
            seen |= {*running.worker_pids, *running.server_pids}
            if len(results) == 2:
                killed = running.worker_pids[:1] if who != "server" else []
                killed += running.server_pids if who != "worker" else []
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)
        assert set(killed).isdisjoint({*running.worker_pids, *running.server_pids})
    assert essence(results) == essence(alone())
    assert not any(psutil.pid_exists(pid) for pid in seen)


def test_simulator_that_hangs_is_replaced_and_the_others_go_on() -> None:
    with pool(step=1.0) as running:
        results = list(running.run(specs("fake_hangs", tasks=2)))
    assert len(results) == 8
    (hung,) = [result for result in results if result.error is not None]
    assert (hung.task, hung.initial_state, hung.attempts, hung.success) == (1, 1, 3, False)
    assert hung.error == "the simulator hung; its time limit ended it"


def test_episode_that_always_kills_its_process_is_an_error_after_three_tries() -> None:
    with pool() as running:
        results = list(running.run(specs("fake_dies", tasks=2)))
    (died,) = [result for result in results if result.error is not None]
    assert (died.task, died.initial_state, died.attempts) == (1, 1, 3)
    assert died.error == "the simulator's process died (exit code 7)"


def test_an_error_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKS, str(tmp_path))
    with pool("expert") as running:
        results = list(running.run(specs("fake_breaks", tasks=2)))
    assert (tmp_path / "broken").exists()
    assert [result.error for result in results] == [None] * 8
    assert {(r.task, r.initial_state): r.attempts for r in results if r.attempts > 1} == {(1, 1): 2}


def test_missing_assets_of_one_task_leave_the_others() -> None:
    with pool() as running:
        results = list(running.run(specs("fake_incomplete")))
    errors = {(r.task, r.initial_state): r.error for r in results if r.error is not None}
    assert errors == {(1, state): "task 1: an asset is missing" for state in range(4)}


def test_missing_assets_of_all_tasks_are_the_users_mistake() -> None:
    with pool() as running, pytest.raises(InputError, match="task 0: an asset is missing"):
        list(running.run(specs("fake_empty", tasks=1)))


@pytest.mark.parametrize(
    ("policy", "error", "message"),
    [
        ("unusable", InputError, "^no tokenizer there$"),
        ("dying", InputError, r"policy server died 3 times .*exit code 9"),
        ("failing", PolicyFailedError, "ZeroDivisionError: the network fell over"),
    ],
)
def test_policy_that_cannot_act_is_explained(policy: str, error: type[Exception], message: str) -> None:
    with pool(policy) as running, pytest.raises(error, match=message):
        list(running.run(specs()))


def test_chunk_longer_than_the_horizon_is_refused() -> None:
    with (
        pool() as running,
        pytest.raises(InputError, match="chunks of 2 steps, longer than the horizon of 1"),
    ):
        list(running.run([EpisodeSpec("fake", 0, 0, 1)]))


def test_policy_server_that_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKS, str(tmp_path))
    limits = TimeLimits(step=30.0, start=60.0, answer=1.0)
    hanging = Pool(Source("hanging"), 2, batch=4, limits=limits, open_suite=open_fake_suite)
    with hanging as running:
        assert essence(list(running.run(specs()))) == essence(alone())
    assert (tmp_path / "hung").exists()


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("3", "3")])
def test_every_process_computes_with_one_thread_unless_told_otherwise(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    with pool() as running:
        next(iter(running.run(specs())))
        pids = [*running.worker_pids, *running.server_pids]
        found = [psutil.Process(pid).environ()["OMP_NUM_THREADS"] for pid in pids]
    assert found == [expected] * 3
    assert os.environ.get("OMP_NUM_THREADS") == given
