"""Which checkpoints are evaluated, and what is reported of it; the evaluations are fakes."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RootConfig
from cluster.failures import CommandFailedError
from cluster.run.checkpoint_evaluations import CheckpointEvaluations, describe_results, wandb_values
from cluster.run.evaluation_group import EvaluationJob, EvaluationOutcome
from data.errors import InputError
from eval.evaluation.results import Results
from eval.rollout.episode import EpisodeResult
from eval.simulator.interface import TaskInfo
from pretrain.checkpoint.location import CheckpointLocation, step_folder
from pretrain.run_folder import RunFolder

LIFT = TaskInfo("s", 0, "lift", "lift the red cube", 120, "Lift")
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


def test_no_frames_are_imagined_where_none_are_trained(run: Run) -> None:
    run.commit(20)
    run.evaluations().poll()
    assert run.group.jobs.pop(20).settings is run.config.eval
    run.config.data.mixture.world = 0
    run.evaluations().poll()
    assert run.group.jobs[20].settings == replace(run.config.eval, imagine_frames=0)
    assert run.config.eval.imagine_frames > 0


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
    for name in ("imagine.mp4", "imagine.png", "results.json", "lift_state_02_error.mp4"):
        (tmp_path / name).touch()
    results = {**RESULTS, "success_rate": None, "world_model": {"tokens/psnr": 20.5}}
    assert wandb_values(results, tmp_path) == {
        "eval/episodes": 4.0,
        "eval/errors": 0.0,
        "world_model/tokens/psnr": 20.5,
        "eval/imagine": tmp_path / "imagine.png",
        "eval/imagine_video": tmp_path / "imagine.mp4",
    }, "a video of an episode that was run again is not named in the results"


def test_a_video_has_one_name_in_wandb_whatever_the_outcome(tmp_path: Path) -> None:
    names = []
    for outcome in (False, True):
        video = f"lift_state_02_{'success' if outcome else 'failure'}.mp4"
        (tmp_path / video).touch()
        result = EpisodeResult(0, 2, outcome, 47, None, 0.1, video=video)
        lost = EpisodeResult(0, 3, outcome, 47, None, 0.1, video_error="disk full")
        results = Results("s", 20, "p", (LIFT,), (result, lost), {}, False).to_json()
        values = wandb_values(results, tmp_path)
        names.append({name for name, value in values.items() if isinstance(value, Path)})
        assert values["eval/lift_state_02"] == tmp_path / video
    assert names == [{"eval/lift_state_02"}] * 2


def test_wandb_values_have_rates_intervals_and_steps_of_the_suite_and_its_tasks(tmp_path: Path) -> None:
    tasks = (LIFT, replace(LIFT, number=1, name="stack"))
    episodes = [EpisodeResult(0, state, state > 0, 40 + state, None, 0.1) for state in range(3)]
    episodes.append(EpisodeResult(1, 0, False, 9, None, 0.1))
    values = wandb_values(Results("s", 20, "p", tasks, tuple(episodes), {}, False).to_json(), tmp_path)
    assert values == {
        "eval/episodes": 4.0,
        "eval/errors": 0.0,
        "eval/success_rate": 0.5,
        "eval/success_low_95": pytest.approx(0.15, abs=0.01),
        "eval/success_high_95": pytest.approx(0.85, abs=0.01),
        "eval/steps_to_success": 41.5,
        "eval/success_rate/lift": pytest.approx(2 / 3),
        "eval/success_low_95/lift": pytest.approx(0.208, abs=0.01),
        "eval/success_high_95/lift": pytest.approx(0.939, abs=0.01),
        "eval/steps_to_success/lift": 41.5,
        "eval/success_rate/stack": 0.0,
        "eval/success_low_95/stack": pytest.approx(0.0, abs=1e-9),
        "eval/success_high_95/stack": pytest.approx(0.793, abs=0.01),
    }


def test_a_summary_that_a_full_disk_refuses_follows_when_there_is_room(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run.commit(20)
    evaluations = run.evaluations()
    evaluations.poll()
    run.write_results(20)
    run.group.outcomes = [EvaluationOutcome(20, RESULTS, None)]
    with monkeypatch.context() as disk:
        disk.setattr(RunFolder, "update_summary", full)
        evaluations.poll()
        evaluations.poll()
        (line,) = (line for line in run.reporter.lines if "summary.json" in line)
        assert line.endswith("cannot be written ([Errno 28] No space left on device); it follows when it can")
        with pytest.raises(CommandFailedError, match=r"summary.json: cannot be written; free space"):
            evaluations.raise_first_failure()
    evaluations.poll()
    assert run.folder.read_summary()["evaluations"] == [{"step": 20, **RESULTS}]
    evaluations.raise_first_failure()
