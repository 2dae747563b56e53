from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from data.errors import InputError
from eval.expert.scripts import demonstrate
from eval.policy.expert_policy import ExpertPolicy
from eval.policy.interface import Observation
from eval.rollout.episode import VIDEO_PIXELS, run_episode
from eval.simulator.interface import EMBODIMENT, Simulator
from tests.support.fake_simulator import FakeSimulator
from tests.support.fake_suite import WRIST_OFFSET, FaultySimulator


class CountingPolicy:
    """Moves upwards, never grasps, and records its observations."""

    pixels = 8

    def __init__(
        self,
        chunk: int,
        history: int,
        cameras: tuple[str, ...] = ("agent",),
        uses_state: bool = False,
    ) -> None:
        self.chunk, self.history = chunk, history
        self.cameras, self.uses_state = cameras, uses_state
        self.embodiment = EMBODIMENT
        self.seen: list[Observation] = []

    def reset(self, environment: int, simulator: Simulator) -> None:
        self.seen.clear()

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        self.seen += observations
        return np.tile([0, 0, 0.1, 0, 0, 0, -1.0], (len(observations), self.chunk, 1))


def steps_seen(observation: Observation, view: int = 0) -> list[int]:
    return observation.frames[:, view, 0, 0, 0].tolist()


def test_only_the_frames_that_the_policy_sees_are_rendered() -> None:
    simulator, policy = FakeSimulator(), CountingPolicy(chunk=5, history=2)
    result = run_episode(simulator, policy, initial_state=0, horizon=12)
    assert result.steps == 12
    assert [steps_seen(observation) for observation in policy.seen] == [[0], [4, 5], [9, 10]]
    assert [step for step, _, _ in simulator.renders] == [0, 4, 5, 9, 10]
    assert {camera for _, camera, _ in simulator.renders} == {"agent"}


@pytest.mark.parametrize("cameras", [("agent", "wrist"), ("wrist", "agent")])
def test_a_policy_of_two_cameras_sees_both_at_each_time_step_in_its_order(cameras: tuple[str, ...]) -> None:
    simulator, policy = FaultySimulator("fake", 0), CountingPolicy(5, 2, cameras)
    run_episode(simulator, policy, initial_state=0, horizon=12)
    expected = [[0], [4, 5], [9, 10]]
    agent, wrist = cameras.index("agent"), cameras.index("wrist")
    assert [steps_seen(observation, agent) for observation in policy.seen] == expected
    of_wrist = [[step + WRIST_OFFSET for step in steps] for steps in expected]
    assert [steps_seen(observation, wrist) for observation in policy.seen] == of_wrist
    assert policy.seen[0].frames.shape == (1, 2, 8, 8, 3)
    assert simulator.renders == [(step, camera, 8) for step in (0, 4, 5, 9, 10) for camera in cameras]


def test_the_state_is_that_of_the_decision_and_only_read_where_it_is_used() -> None:
    read: list[int] = []

    class Simulator(FakeSimulator):
        def state(self) -> NDArray[np.float64]:
            read.append(len(self.actions))
            return super().state()

    policy = CountingPolicy(5, 2, uses_state=True)
    run_episode(Simulator(), policy, initial_state=0, horizon=12)
    assert read == [0, 5, 10]
    heights = [0.2 + 0.005 * step for step in read]  # 0.1 of 5 cm in each step
    states = [observation.state for observation in policy.seen]
    np.testing.assert_allclose([state[2] for state in states if state is not None], heights)
    blind = CountingPolicy(5, 2)
    run_episode(Simulator(), blind, initial_state=0, horizon=12)
    assert len(read) == 3
    assert all(observation.state is None for observation in blind.seen)


@pytest.mark.parametrize(("chunk", "history"), [(1, 1), (1, 3), (3, 3), (2, 4)])
def test_frames_are_always_the_newest_of_the_history(chunk: int, history: int) -> None:
    policy = CountingPolicy(chunk, history)
    run_episode(FakeSimulator(), policy, 0, horizon=9)
    for number, observation in enumerate(policy.seen):
        now = number * chunk
        expected = list(range(max(0, now - history + 1), now + 1))
        assert steps_seen(observation) == expected


def test_expert_succeeds_stops_at_once_and_is_recorded() -> None:
    simulator = FakeSimulator()
    result = run_episode(simulator, ExpertPolicy(), 1, video=True)
    assert result.success
    assert result.error is None
    assert result.steps == len(simulator.actions)
    assert len(result.frames) == -(-result.steps // 4) + 1, "every fourth one and the last"
    assert result.frames[0].shape == (VIDEO_PIXELS, VIDEO_PIXELS, 3)


class ChunkedExpert(ExpertPolicy):
    """The expert's whole script as one chunk, followed by a drop."""

    chunk = 40

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        alone = FakeSimulator()
        script = []
        for action in demonstrate(alone):
            alone.step(action)
            script.append(action)
        drop = [[0, 0, -0.9, 0, 0, 0, -1.0]] * (self.chunk - len(script))
        return np.array([[*script, *drop]])


def test_success_ends_the_episode_in_the_middle_of_a_chunk() -> None:
    simulator = FakeSimulator()
    result = run_episode(simulator, ChunkedExpert(), 0)
    assert result.success
    assert result.steps < ChunkedExpert.chunk
    assert simulator.cube[2] == pytest.approx(0.08, abs=0.02)  # not one step further


def test_failure_ends_at_the_horizon() -> None:
    result = run_episode(FakeSimulator(), CountingPolicy(4, 1), 0, horizon=6)
    assert (result.success, result.steps, result.error) == (False, 6, None)


def test_simulator_error_is_not_a_failure() -> None:
    result = run_episode(FakeSimulator(breaks_at=7), CountingPolicy(4, 1), 0)
    assert result.error == "the fake simulator failed"
    assert result.steps == 7
    assert not result.success


def test_chunk_longer_than_the_horizon_is_refused() -> None:
    with pytest.raises(InputError, match="chunks of 5 steps"):
        run_episode(FakeSimulator(), CountingPolicy(5, 1), 0, horizon=4)


def test_expert_stands_still_when_its_script_has_ended() -> None:
    simulator, expert = FakeSimulator(), ExpertPolicy()
    expert.reset(0, simulator)
    observation = Observation(0, "", np.empty((0, 0, 0, 0, 3), np.uint8))
    actions = [expert.act([observation])[0, 0] for _ in range(300)]  # the cube is never reached
    np.testing.assert_array_equal(actions[-1][:6], 0.0)
