"""Results of robustness suites by what their tasks change: results.json, console, report and W&B."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from cluster.run.checkpoint_evaluations import wandb_values
from data.errors import InputError
from eval.config import EvaluationSettings
from eval.evaluation.evaluate import evaluate
from eval.evaluation.results import MAX_TASK_ROWS, Results, results_table, wilson, write_results
from eval.report.page import write_report
from eval.rollout.episode import EpisodeResult
from tests.support.fake_simulator import TASK
from tests.support.fake_suite import FakePolicySource, FakeSuite

CATEGORIES = ("camera", "camera", "noise")


def outcome(tasks: int = 3) -> Results:
    infos = tuple(
        replace(
            TASK,
            suite="libero_plus",
            number=i,
            name=f"task_{i}",
            instruction=f"do {i}",
            category=CATEGORIES[i % 3],
        )
        for i in range(tasks)
    )
    episodes = tuple(
        EpisodeResult(i, 0, success=i % 3 == 0, steps=10, error="broke" if i % 3 == 1 else None, seconds=0.1)
        for i in range(tasks)
    )
    return Results("libero_plus", 100, "runs/mine", infos, episodes, {"mujoco": "3"}, False)


def printed(results: Results) -> str:
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(results_table(results))
    return console.export_text()


def test_categories_are_counted_with_their_intervals() -> None:
    content = outcome().to_json()
    camera, noise = content["per_category"]
    assert (camera["category"], camera["tasks"], camera["episodes"], camera["errors"]) == ("camera", 2, 2, 1)
    assert (camera["success_rate"], camera["wilson_95"]) == (1.0, wilson(1, 1))
    assert (noise["category"], noise["success_rate"], noise["wilson_95"]) == ("noise", 0.0, wilson(0, 1))
    assert [row["category"] for row in content["per_task"]] == list(CATEGORIES)
    plain = replace(outcome(), tasks=(TASK,), episodes=())
    assert plain.to_json()["per_category"] == []
    assert "category" not in plain.to_json()["per_task"][0]


def test_the_console_shows_categories_and_leaves_very_many_tasks_out() -> None:
    few, many = printed(outcome()), printed(outcome(MAX_TASK_ROWS + 1))
    assert "all of camera: 2 tasks (published: WorldVLA 0.1 %)" in few
    assert "do 1" in few
    assert "all of camera: 68 tasks" in many
    assert "do 1" not in many


def test_the_report_shows_categories(tmp_path: Path) -> None:
    folder = tmp_path / "eval" / "step_00000100-libero_plus"
    write_results(outcome(), folder)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "all of camera: 2 tasks" in page
    assert "<td>do 0</td>" in page
    write_results(outcome(MAX_TASK_ROWS + 1), folder)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "all of camera: 68 tasks" in page
    assert "<td>do 0</td>" not in page  # solved: nor is it among the failures


def test_wandb_gets_categories(tmp_path: Path) -> None:
    values = wandb_values(outcome().to_json(), tmp_path)
    assert values["eval/success_rate/category/camera"] == 1.0
    assert values["eval/success_rate/category/noise"] == 0.0
    assert values["eval/success_high_95/category/noise"] == wilson(0, 1)[1]


class FewStates(FakeSuite):
    """A suite whose second task has one initial state."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.tasks = (self.tasks[0], replace(self.tasks[1], initial_states=1), self.tasks[2])


def test_more_episodes_than_a_task_has_initial_states_are_refused_first(tmp_path: Path) -> None:
    settings = EvaluationSettings(suite="fake", episodes=2)
    with pytest.raises(
        InputError, match=r"episodes=2 from seed=0: task 1 of fake has 1 fixed initial state; ask"
    ):
        evaluate(FakePolicySource("expert"), settings, tmp_path, open_suite=FewStates)
    assert list(tmp_path.iterdir()) == []
