"""Which checkpoints are evaluated, and what is reported of it; the evaluations are fakes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RootConfig
from cluster.failures import CommandFailedError
from cluster.run.checkpoint_evaluations import CheckpointEvaluations, describe_results, wandb_values
from cluster.run.evaluation_group import EvaluationJob, EvaluationOutcome
from data.errors import InputError
from pretrain.checkpoint.location import CheckpointLocation, step_folder
from pretrain.run_folder import RunFolder

RESULTS = {"suite": "s", "tasks": [0], "episodes": 4, "successes": 3, "errors": 0, "success_rate": 0.75}


@dataclass
class FakeGroup:
    """Ends evaluations when a test says so."""

    jobs: dict[int, EvaluationJob] = field(default_factory=dict)
    outcomes: list[EvaluationOutcome] = field(default_factory=list)

    @property
    def pending(self) -> list[int]:
        return sorted(self.jobs.keys() - {outcome.step for outcome in self.outcomes})

    def submit(self, job: EvaluationJob) -> None:
        self.jobs[job.step] = job

    def progress(self) -> dict[int, tuple[int, int]]:
        return {step: (1, 4) for step in self.pending}

    def take_outcomes(self) -> list[EvaluationOutcome]:
        outcomes, self.outcomes = self.outcomes, []
        for outcome in outcomes:
            del self.jobs[outcome.step]
        return outcomes


@dataclass
class FakeBar:
    shown: list[tuple[int, int | None, str]] = field(default_factory=list)

    def update(self, done: int, total: int | None = None, detail: str = "") -> None:
        self.shown.append((done, total, detail))


@dataclass
class FakeReporter:
    lines: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    values: dict[int, dict[str, Any]] = field(default_factory=dict)
    bars: dict[str, FakeBar] = field(default_factory=dict)

    def line(self, text: str) -> None:
        self.lines.append(text)

    def log_event(self, record: dict[str, Any]) -> None:
        self.events.append(record)

    def log_values(self, step: int, values: dict[str, Any]) -> None:
        self.values[step] = values

    def bar(self, label: str) -> FakeBar:
        return self.bars.setdefault(label, FakeBar())


@dataclass
class Run:
    """A run with fakes around its evaluations."""

    folder: RunFolder
    config: RootConfig
    group: FakeGroup = field(default_factory=FakeGroup)
    reporter: FakeReporter = field(default_factory=FakeReporter)

    def evaluations(self) -> CheckpointEvaluations:
        checkpoints = CheckpointLocation(self.folder.checkpoints)
        fakes: Any = self.group, self.reporter
        return CheckpointEvaluations(self.config, self.folder, checkpoints, *fakes)

    def commit(self, *steps: int) -> None:
        for step in steps:
            folder = step_folder(self.folder.checkpoints, step)
            folder.mkdir(parents=True)
            (folder / "READY").touch()

    def write_results(self, step: int) -> None:
        folder = self.folder.evaluation(step)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"step": step, **RESULTS}))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = RootConfig()
    config.run.name, config.run.dir = "r", str(tmp_path)
    config.trainer.steps, config.eval.every = 30, 20
    return Run(RunFolder.of(config.run), config)


def test_due_checkpoints_are_submitted_once(run: Run) -> None:
    run.commit(10, 20, 30)
    evaluations = run.evaluations()
    for _ in range(2):
        evaluations.poll()
    assert evaluations.pending == [20, 30]
    assert run.group.jobs[20].checkpoint == str(step_folder(run.folder.checkpoints, 20))
    assert run.group.jobs[20].out == run.folder.evaluation(20)
    assert run.reporter.bars["evaluate step 20"].shown == [(1, 4, "")] * 2
    evaluations.report_pending()
    assert run.reporter.lines == ["evaluations that did not end: steps 20, 30; resuming the run repeats them"]


def test_evaluations_of_an_earlier_start_are_not_repeated(run: Run) -> None:
    run.commit(20)
    run.write_results(20)
    run.evaluations().poll()
    assert run.group.jobs == {}


def test_without_evaluations_checkpoints_are_not_listed(run: Run) -> None:
    run.config.eval.every = 0
    run.folder.checkpoints.parent.mkdir(parents=True)
    run.folder.checkpoints.touch()  # not a folder: listing it would fail
    run.evaluations().poll()


def test_results_are_shown_and_written_to_summary_events_and_wandb(run: Run) -> None:
    run.commit(20)
    evaluations = run.evaluations()
    evaluations.poll()
    run.write_results(20)
    run.group.outcomes = [EvaluationOutcome(20, RESULTS, None)]
    evaluations.poll()
    assert run.reporter.bars["evaluate step 20"].shown[-1] == (4, 4, "3 of 4 episodes succeeded")
    assert run.folder.read_summary()["evaluations"] == [{"step": 20, **RESULTS}]
    counts = {"suite": "s", "episodes": 4, "successes": 3, "errors": 0}
    assert run.reporter.events == [{"event": "evaluated", "step": 20, **counts}]
    assert run.reporter.values[20] == {"eval/success_rate": 0.75, "eval/episodes": 4.0, "eval/errors": 0.0}
    evaluations.raise_first_failure()


def test_damaged_results_are_refused_at_the_start_and_told_later(run: Run) -> None:
    run.commit(20)
    evaluations = run.evaluations()
    evaluations.poll()
    run.folder.evaluation(20).mkdir(parents=True)
    (run.folder.evaluation(20) / "results.json").write_bytes(b"\xff")
    run.group.outcomes = [EvaluationOutcome(20, RESULTS, None)]
    evaluations.poll()
    assert "step_00000020/results.json: not JSON" in run.reporter.lines[0]
    with pytest.raises(InputError, match=r"results.json: not JSON .*; remove it: its evaluation is repeated"):
        run.evaluations()


def test_the_first_failure_is_raised_at_the_end(run: Run) -> None:
    run.commit(20, 30)
    evaluations = run.evaluations()
    evaluations.poll()
    run.group.outcomes = [EvaluationOutcome(step, None, f"cause {step}") for step in (20, 30)]
    evaluations.poll()
    assert [event["event"] for event in run.reporter.events] == ["evaluation_failed"] * 2
    assert run.reporter.lines[0] == "evaluation of step 20 failed: cause 20"
    with pytest.raises(CommandFailedError, match=r"^the evaluation of step 20 failed: cause 20$"):
        evaluations.raise_first_failure()


def test_a_failure_whose_checkpoint_was_removed_says_so(run: Run) -> None:
    run.commit(20)
    run.config.checkpointing.keep_last = 1
    evaluations = run.evaluations()
    evaluations.poll()
    (step_folder(run.folder.checkpoints, 20) / "READY").unlink()
    run.group.outcomes = [EvaluationOutcome(20, None, "no committed checkpoint")]
    evaluations.poll()
    assert "its checkpoint was removed before it was read" in run.reporter.events[0]["error"]
    assert "checkpointing.keep_last=1" in run.reporter.lines[0]


def test_a_cancelled_evaluation_is_no_failure(run: Run) -> None:
    run.commit(20)
    evaluations = run.evaluations()
    evaluations.poll()
    run.group.outcomes = [EvaluationOutcome(20, None, None, cancelled=True)]
    evaluations.poll()
    evaluations.raise_first_failure()
    assert run.reporter.events == [{"event": "evaluation_given_up", "step": 20}]


def test_errors_are_part_of_the_description() -> None:
    assert describe_results({**RESULTS, "errors": 1}) == "3 of 4 episodes succeeded, 1 ended in an error"


def test_wandb_values_name_numbers_videos_and_pictures(tmp_path: Path) -> None:
    for name in ("task_0.mp4", "imagine.png", "results.json"):
        (tmp_path / name).touch()
    results = {**RESULTS, "success_rate": None, "world_model": {"psnr": 20.5}}
    assert wandb_values(results, tmp_path) == {
        "eval/episodes": 4.0,
        "eval/errors": 0.0,
        "world_model/psnr": 20.5,
        "eval/task_0": tmp_path / "task_0.mp4",
        "eval/imagine": tmp_path / "imagine.png",
    }
