"""Actions of an episode beside the expert's; recording them changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.config import EvaluationSettings
from eval.evaluation.evaluate import evaluate
from eval.policy.expert_policy import ExpertPolicy
from eval.policy.interface import Decision, Observation
from eval.report.action_data import read_rollout
from eval.rollout.episode import run_episode
from eval.rollout.expert_reference import ExpertReference, can_be_asked
from eval.rollout.trace import trace_of
from eval.simulator.interface import EMBODIMENT, Goal, Simulator
from tests.support.fake_simulator import FakeSimulator
from tests.support.fake_suite import FakePolicySource, open_fake_suite


class SurePolicy:
    """Moves upwards; its entropy counts its actions."""

    chunk, history, cameras, pixels, uses_state = 3, 0, (), 8, False
    embodiment = EMBODIMENT

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def reset(self, environment: int, simulator: Simulator) -> None:
        self.asked.clear()

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        return np.tile([0, 0, 0.1, 0, 0, 0, -1.0], (len(observations), self.chunk, 1))

    def decide(self, observations: Sequence[Observation]) -> Decision:
        self.asked += [each.with_entropy for each in observations]
        entropy = np.array([[0.0, 0.1, 0.2]], np.float32) + np.float32(len(self.asked))
        return Decision(self.act(observations), entropy)


def test_a_recorded_episode_has_chunks_entropy_and_the_experts_actions(tmp_path: Path) -> None:
    policy = SurePolicy()
    plain = run_episode(FakeSimulator(), policy, 0, horizon=7)
    assert plain.trace is None
    assert policy.asked == [], "nothing is asked for where nothing is recorded"
    recorded = run_episode(FakeSimulator(), policy, 0, horizon=7, video=True)
    assert recorded.actions_sha256 == plain.actions_sha256
    assert policy.asked == [True] * 3
    trace = recorded.trace
    assert trace is not None
    assert trace.chunks.shape == (3, 3, 7)
    assert trace.entropy is not None
    np.testing.assert_allclose(trace.entropy[:, 0], [1, 2, 3])
    assert trace.expert is not None
    assert trace.expert.shape == (7, 7)
    trace.write(tmp_path / "a.actions.json")
    read = read_rollout(tmp_path / "a.actions.json")
    assert read is not None
    assert read.curves.expert is not None
    assert read.decisions is not None
    assert read.chunk == 3
    np.testing.assert_allclose(read.curves.policy, trace.chunks.reshape(-1, 7)[:7])
    np.testing.assert_allclose(read.curves.expert, trace.expert, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(read.decisions, trace.entropy.mean(axis=1), rtol=1e-4)


def test_the_expert_agrees_with_itself() -> None:
    trace = run_episode(FakeSimulator(), ExpertPolicy(), 1, video=True).trace
    assert trace is not None
    assert trace.expert is not None
    np.testing.assert_array_equal(trace.expert, trace.chunks[:, 0][: trace.steps])
    assert trace.entropy is None


def test_the_expert_starts_anew_when_the_object_is_out_of_reach() -> None:
    simulator, reference = FakeSimulator(), ExpertReference()
    simulator.reset(0)
    simulator.hand = simulator.cube.copy()
    closing = [reference.action(simulator) for _ in range(3)]
    assert [action[-1] for action in closing if action is not None] == [1.0] * 3
    simulator.hand = simulator.cube + np.array([0.0, 0.0, 0.2])
    descending = reference.action(simulator)
    assert descending is not None
    assert (descending[-1], descending[2] < 0) == (-1.0, True)
    simulator.hand = simulator.cube.copy()
    actions = [reference.action(simulator) for _ in range(40)]
    assert actions[-1] is None, "its script has ended"
    raised = [action is not None and action[2] > 0 for action in actions]
    assert raised.index(True) == 6, "a whole closing again"


def test_only_lifting_can_be_asked_in_any_state(monkeypatch: pytest.MonkeyPatch) -> None:
    simulator = FakeSimulator()
    assert can_be_asked(simulator)
    monkeypatch.setattr(simulator, "goals", lambda: (Goal("on", "cube", "plate"),))
    assert not can_be_asked(simulator)
    trace = run_episode(simulator, SurePolicy(), 0, horizon=3, video=True).trace
    assert trace is not None
    assert trace.expert is None


def test_an_evaluation_keeps_the_actions_of_all_its_episodes_beside_their_videos(tmp_path: Path) -> None:
    settings = EvaluationSettings(suite="fake", tasks=[0], episodes=3, videos=None)
    for out, earlier in (("a", None), ("b", tmp_path / "a")):
        evaluate(
            FakePolicySource("reaching"),
            settings,
            tmp_path / out,
            earlier=earlier,
            open_suite=open_fake_suite,
        )
        rows = json.loads((tmp_path / out / "results.json").read_text())["per_episode"]
        assert len(rows) == 3
        for row in rows:
            actions = read_rollout(trace_of(tmp_path / out / row["video"]))
            assert actions is not None
            assert len(actions.curves.policy) == row["steps"]
