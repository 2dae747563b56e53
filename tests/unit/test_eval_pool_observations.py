"""The setting `observations` reaches the simulator, and another one opens it anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.config import EvaluationSettings, Observations
from eval.evaluation import evaluate as evaluate_module
from eval.evaluation.evaluate import evaluate
from eval.pool.messages import EpisodeSpec
from eval.pool.worker import _SimulatorCache
from eval.rollout.episode import EpisodeResult
from tests.support.fake_simulator import FakeSimulator
from tests.support.fake_suite import FakePolicySource, FakeSuite, open_fake_suite

EXPECTED: list[tuple[int, Observations]] = [(0, "published"), (0, "recomputed"), (1, "recomputed")]


def test_a_simulator_is_opened_with_the_observations_of_its_episodes() -> None:
    opened: list[tuple[int, Observations]] = []

    class Recording(FakeSuite):
        def open(self, task: int, observations: Observations = "recomputed") -> FakeSimulator:
            opened.append((task, observations))
            return super().open(task, observations)

    cache = _SimulatorCache(Recording)
    asked: list[tuple[int, Observations]] = [(0, "published"), (0, "published")]
    for task, observations in [*asked, *EXPECTED[1:]]:
        cache.open(EpisodeSpec("fake", task, 0, 40, observations))
    assert opened == EXPECTED


@pytest.mark.parametrize("observations", ["recomputed", "published"])
def test_every_episode_of_an_evaluation_has_its_observations(
    observations: Observations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run(policy: object, specs: list[EpisodeSpec], *rest: object) -> Iterator[EpisodeResult]:
        for spec in specs:
            asked.append(spec.observations)
            yield EpisodeResult(spec.task, spec.initial_state, True, 3, None, 0.1)

    monkeypatch.setattr(evaluate_module, "_run", run)
    settings = EvaluationSettings(suite="fake", episodes=2, observations=observations)
    evaluate(FakePolicySource("expert"), settings, tmp_path, open_suite=open_fake_suite)
    assert asked == [observations] * 6
