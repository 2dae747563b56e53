"""Measured success rates beside published ones: comparable only where the published protocol was followed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster.cli.handlers.evaluate import run_eval
from cluster.cli.invocation import Invocation
from eval.config import EvalCommandConfig
from eval.evaluation import evaluate as evaluation
from eval.evaluation.provenance import Provenance
from eval.evaluation.published_rates import published_plus_rates, published_rates
from eval.evaluation.reproduction import joined_differences, states_difference
from eval.evaluation.results import Results, wilson
from eval.report.evaluations import StoredEvaluation, joined
from eval.rollout.episode import EpisodeResult
from eval.simulator.interface import TaskInfo

PUBLISHED = Provenance("osmesa (Mesa)", "hard", "published", {"mujoco": "3.3.2"}, None, "bf16")


def results(
    successes: int, suite: str = "libero_goal", tasks: int = 10, states: int = 50, errors: int = 0
) -> Results:
    """An evaluation whose first `successes` episodes are solved and whose last `errors` broke."""
    keys = [(task, state) for task in range(tasks) for state in range(states)]
    episodes = tuple(
        EpisodeResult(
            task, state, number < successes, 10, "broke" if number >= len(keys) - errors else None, 0.5
        )
        for number, (task, state) in enumerate(keys)
    )
    infos = tuple(TaskInfo(suite, number, f"task_{number}", "do it", 300, "Fake") for number in range(tasks))
    return Results(
        suite, 100, "runs/r/step", infos, episodes, {}, False, provenance=PUBLISHED, suite_tasks=10
    )


def verdicts(outcome: Results) -> dict[str, str]:
    return {row.model: row.verdict_text for row in outcome.reproduction()}


def test_a_published_rate_is_inside_or_outside_the_interval() -> None:
    outcome = results(410)  # 82.0 %
    low, high = wilson(410, 500)
    assert (low, high) == pytest.approx((0.7839, 0.8512), abs=1e-4)
    assert outcome.published_differences() == []
    assert verdicts(outcome) == {
        "WorldVLA 256 px": "inside the interval",  # 82.6
        "WorldVLA 512 px": "inside the interval",  # 83.4
        "WorldVLA, chunk + action mask, no world data": "inside the interval",  # 84.4
        "WorldVLA, chunk, no action mask, no world data": "inside the interval",  # 79.6
        "RynnVLA-002 discrete": "outside the interval",  # 94.6
        "RynnVLA-002 continuous": "outside the interval",  # 96.4
    }
    row = outcome.to_json()["reproduction"][0]
    assert row == {
        "model": "WorldVLA 256 px",
        "published": 0.826,
        "measured": 0.82,
        "wilson_95": (low, high),
        "verdict": "inside the interval",
        "reason": "",
    }
    json.dumps(outcome.to_json(), allow_nan=False)
    assert set(verdicts(results(300)).values()) == {"outside the interval"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"provenance": replace(PUBLISHED, reset="soft")}, "soft resets, not hard ones"),
        ({"provenance": replace(PUBLISHED, observations="recomputed")}, "observations=recomputed, not publ"),
        ({"standin_assets": True}, "some assets are stand-ins"),
        ({"horizon": 100}, "a horizon of 100 steps, not the suite's"),
        ({"episodes": results(0).episodes[:-1]}, "10 tasks of at least 49 initial states, not 10 of 50"),
    ],
)
def test_other_protocols_are_not_compared(changed: dict[str, object], reason: str) -> None:
    found = set(verdicts(replace(results(410), **changed)).values())  # pyright: ignore[reportArgumentType]
    assert len(found) == 1
    assert found.pop().startswith(f"not comparable: {reason}")


def test_nothing_measured_is_not_compared() -> None:
    outcome = results(0, tasks=10, states=50, errors=500)
    assert set(verdicts(outcome).values()) == {"not comparable: no episode ended without an error"}
    assert outcome.to_json()["reproduction"][0]["measured"] is None


def test_libero_plus_is_compared_by_the_kind_of_perturbation() -> None:
    assert published_rates("libero_plus_camera") == {"WorldVLA": 0.001}
    assert published_rates("libero_plus_noise") == {"WorldVLA": 0.109}
    assert published_rates("libero_plus_background") == {"WorldVLA": 0.171}
    assert published_rates("libero_plus_unknown") == {}
    total = published_plus_rates(None)
    assert published_rates("libero_plus") == total
    assert (total["WorldVLA"], total["pi0.5"], max(total.values())) == (0.25, 0.855, 0.869)
    once = results(2, suite="libero_plus_noise", states=1)
    assert verdicts(once) == {"WorldVLA": "inside the interval"}
    assert verdicts(results(2, suite="libero_plus_noise", tasks=4, states=1)) == {
        "WorldVLA": "not comparable: 4 of its 10 tasks"
    }
    assert verdicts(results(2, suite="libero_plus_noise", states=3)) == {
        "WorldVLA": "not comparable: up to 3 initial states a task, not 1"
    }
    assert verdicts(results(2, suite="libero_plus_layout", states=1)) == {
        "WorldVLA": "not comparable: without the tasks with added objects"
    }
    (total_verdict,) = set(verdicts(results(2, suite="libero_plus", states=1)).values())
    assert total_verdict.startswith("not comparable: without the categories light and background")


def test_joined_evaluations_are_compared_by_all_their_episodes(tmp_path: Path) -> None:
    first, second = results(260), results(260)
    halves = [
        replace(first, episodes=tuple(e for e in first.episodes if e.initial_state < 30)),
        replace(second, episodes=tuple(e for e in second.episodes if e.initial_state >= 20)),
    ]
    halves = [replace(each, provenance=replace(PUBLISHED, reset="soft")) for each in halves]
    stored = [
        StoredEvaluation(tmp_path / f"step_0000010{i}", json.loads(json.dumps(half.to_json())))
        for i, half in enumerate(halves)
    ]
    assert stored[0].results["published_differences"][0].startswith("10 tasks of at least 30 initial states")
    (record,) = joined(stored, {})
    assert record.results["episodes"] == 500
    assert record.results["published_differences"] == ["soft resets, not hard ones"]
    few = states_difference("libero_goal", {0: 2}, 10)
    assert joined_differences("libero_goal", [*few, "x"], {0: 2}, {0: 3}, 10) == [
        "1 tasks of at least 3 initial states, not 10 of 50",
        "x",
    ]


def test_the_command_prints_the_comparison(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [results(410), results(410), results(410, suite="robosuite_lift")]
    monkeypatch.setattr(evaluation, "evaluate_command", lambda *_: outcomes.pop(0))
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    run_eval(EvalCommandConfig(), Invocation(console, False, (), False))
    text = " ".join(console.export_text().split())
    assert "libero_goal: published rates" in text
    assert "RynnVLA-002 discrete │ 94.6 % │ 82.0 % │ 78.4-85.1 % │ outside the interval" in text
    run_eval(EvalCommandConfig(), Invocation(console, True, (), False))
    rows = json.loads(capsys.readouterr().out)["reproduction"]
    assert [row["verdict"] for row in rows][-2:] == ["outside the interval"] * 2
    run_eval(EvalCommandConfig(), Invocation(console, False, (), False))
    assert "published rates" not in console.export_text()
