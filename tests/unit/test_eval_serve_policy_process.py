"""The policy's process: what it answers, and how it is replaced."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.contracts import DEFAULT_EMBODIMENT
from data.errors import InputError
from eval.policy.interface import Observation
from eval.pool.messages import PolicySpec, TimeLimits
from eval.serve.policy_process import PolicyLostError, PolicyProcess, answers, served_observation
from tests.support.fake_suite import MARKS, FakePolicySource, ReachingPolicy
from tests.support.waiting import wait_until

FRAMES = np.full((1, 2, 8, 8, 3), 5, np.uint8)
STATE = np.zeros(8)
OBSERVATIONS = [
    served_observation("lift", FRAMES, STATE),
    served_observation("lift", np.concatenate([FRAMES // 2, FRAMES]), STATE),
]


@contextmanager
def process(name: str, limits: TimeLimits | None = None) -> Iterator[PolicyProcess]:
    made = PolicyProcess(FakePolicySource(name), limits or TimeLimits())
    try:
        yield made
    finally:
        made.close()


def test_a_policy_that_was_killed_is_loaded_again_for_the_next_observation() -> None:
    with process("reaching") as served:
        assert not served.is_ready
        assert served.start() == PolicySpec(
            chunk=2, history=2, cameras=("agent", "wrist"), pixels=8, uses_state=True
        )
        assert served.is_ready
        expected = ReachingPolicy().act(OBSERVATIONS)
        np.testing.assert_array_equal(served.ask(OBSERVATIONS), expected)  # type: ignore[arg-type]
        child = served._child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        wait_until(lambda: child.has_ended)
        np.testing.assert_array_equal(served.ask(OBSERVATIONS), expected)  # type: ignore[arg-type]


def test_answers_have_the_numbers_of_the_policys_robot() -> None:
    policy = ReachingPolicy()
    policy.embodiment = replace(DEFAULT_EMBODIMENT, action=("one", "two"), missing=())
    with pytest.raises(ValueError, match=r"policy gave \(1, 2, 7\), expected \(1, 2, 2\)"):
        answers(policy, OBSERVATIONS[:1])


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("unusable", InputError, "^no tokenizer there$"),
        ("dying", PolicyLostError, r"its process ended \(exit code 9\)"),
        ("failing", PolicyLostError, "ZeroDivisionError: the network fell over"),
    ],
)
def test_a_policy_that_cannot_be_loaded_is_explained(name: str, error: type[Exception], words: str) -> None:
    with process(name) as served, pytest.raises(error, match=words):
        served.start()
    assert not served.is_ready


def test_a_policy_that_is_lost_again_and_again_is_given_up() -> None:
    with process("dying") as served:
        for _ in range(3):
            with pytest.raises(PolicyLostError):
                served.ask(OBSERVATIONS)
        with pytest.raises(InputError, match=r"failed 4 times without an answer .*`worldvla eval` with"):
            served.ask(OBSERVATIONS)


def test_a_policy_that_hangs_is_ended_by_a_stop_or_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARKS, str(tmp_path))
    with process("hanging") as served:
        stopping = threading.Thread(
            target=lambda: (wait_until(lambda: any(tmp_path.iterdir())), served.stop())
        )
        stopping.start()
        with pytest.raises(PolicyLostError, match="the server is stopping"):
            served.start()
        stopping.join()
    never = pytest.raises(PolicyLostError, match="nothing came within start_seconds=0")
    with process("hanging", TimeLimits(start=0.0)) as served, never:
        served.start()


class Strict(ReachingPolicy):
    """Refuses long instructions."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        if any(len(observation.instruction) > 10 for observation in observations):
            raise InputError("too long")
        return super().act(observations)


def test_what_the_policy_refuses_costs_no_other_observation() -> None:
    long = served_observation("a long instruction", FRAMES, STATE)
    given = answers(Strict(), [OBSERVATIONS[0], long, OBSERVATIONS[1]])
    assert given[1] == "too long"
    np.testing.assert_array_equal([given[0], given[2]], Strict().act(OBSERVATIONS))  # type: ignore[list-item]


class Misshapen(ReachingPolicy):
    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        return super().act(observations)[:, :, :6]


def test_chunks_of_another_shape_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"policy gave \(2, 2, 6\), expected \(2, 2, 7\)"):
        answers(Misshapen(), OBSERVATIONS)
