"""The settings `observations` and `reset` reach the simulator, and another one opens it anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.config import EvaluationSettings, Observations, Reset
from eval.evaluation import evaluate as evaluate_module
from eval.evaluation.evaluate import evaluate
from eval.pool.messages import EpisodeSpec
from eval.pool.worker import _SimulatorCache
from eval.rollout.episode import EpisodeResult
from tests.support.fake_simulator import FakeSimulator
from tests.support.fake_suite import FakePolicySource, FakeSuite, open_fake_suite


def test_a_simulator_is_opened_with_the_settings_of_its_episodes() -> None:
    opened: list[tuple[int, Observations, Reset | None]] = []

    class Recording(FakeSuite):
        def open(
            self, task: int, observations: Observations = "recomputed", reset: Reset | None = None
        ) -> FakeSimulator:
            opened.append((task, observations, reset))
            return super().open(task, observations, reset)

    cache = _SimulatorCache(Recording)
    first: tuple[int, Observations, Reset | None] = (0, "published", "hard")
    others: list[tuple[int, Observations, Reset | None]] = [
        (0, "recomputed", "hard"),
        (1, "recomputed", "hard"),
        (1, "recomputed", None),
    ]
    for task, observations, reset in [first, first, *others]:
        cache.open(EpisodeSpec("fake", task, 0, 40, observations, reset=reset))
    assert opened == [first, *others]


@pytest.mark.parametrize("observations", ["recomputed", "published"])
def test_every_episode_of_an_evaluation_has_its_observations_and_reset(
    observations: Observations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def run(policy: object, specs: list[EpisodeSpec], *rest: object) -> Iterator[EpisodeResult]:
        for spec in specs:
            asked.append((spec.observations, spec.reset))
            yield EpisodeResult(spec.task, spec.initial_state, True, 3, None, 0.1)

    monkeypatch.setattr(evaluate_module, "_run", run)
    settings = EvaluationSettings(suite="fake", episodes=2, observations=observations, reset="hard")
    results = evaluate(FakePolicySource("expert"), settings, tmp_path, open_suite=open_fake_suite)
    assert asked == [(observations, "hard")] * 6
    assert results.provenance is not None
    assert results.provenance.reset == "hard"
