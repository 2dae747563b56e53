"""Evaluations of a run's committed checkpoints: which are due, how far they are, how they ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.config import RootConfig
from cluster.failures import CommandFailedError
from cluster.run.checkpoint_watch import CheckpointWatch, due_steps, evaluated_steps
from cluster.run.evaluation_group import EvaluationGroup, EvaluationJob, EvaluationOutcome, Results
from cluster.run.run_reporter import RunReporter
from data.errors import InputError
from data.json_record import read_json_object
from eval.config import EvaluationConfig
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.run_folder import RunFolder
from pretrain.run_layout import IMAGINE_STEM, RESULTS_FILE, files_by_step
from pretrain.telemetry.progress import ProgressBar

_SUMMARY_KEYS = ("step", "suite", "tasks", "episodes", "successes", "errors", "success_rate")
_EVENT_KEYS = ("suite", "episodes", "successes", "errors")


class CheckpointEvaluations:
    """Submits the evaluation of every checkpoint that is due and reports its outcome; no method blocks.

    Args:
        config: The run's settings.
        folder: Of the run.
        checkpoints: Location of the run's checkpoints.
        group: Runs the evaluations.
        reporter: Receives progress and outcomes.

    Raises:
        InputError: Results of an earlier start are damaged.
    """

    def __init__(
        self,
        config: RootConfig,
        folder: RunFolder,
        checkpoints: CheckpointLocation,
        group: EvaluationGroup,
        reporter: RunReporter,
    ) -> None:
        self._config, self._folder, self._checkpoints = config, folder, checkpoints
        self._group, self._reporter = group, reporter
        self._watch = CheckpointWatch(checkpoints)
        self._submitted = evaluated_steps(folder.evaluations)
        _read_results(folder)  # refuse damaged ones before the training starts
        self._bars: dict[int, ProgressBar] = {}
        self._failures: list[EvaluationOutcome] = []
        self._summary_due = False  # the disk has refused `summary.json`

    @property
    def pending(self) -> list[int]:
        """Steps whose evaluation has not ended, ascending."""
        return self._group.pending

    def poll(self, refresh: bool = False) -> None:
        """Submit what is due, show progress and report outcomes.

        Args:
            refresh: List the checkpoints of an object store again in any case.
        """
        for step in self._due(refresh):
            self._submit(step)
        for step, (done, total) in self._group.progress().items():
            self._bars[step].update(done, total or None)
        for outcome in self._group.take_outcomes():
            self._report(outcome)
        if self._summary_due:
            self._update_summary()

    def report_pending(self) -> None:
        """Print the steps whose evaluation has not ended, if any."""
        if self.pending:
            steps = ", ".join(map(str, self.pending))
            self._reporter.line(f"evaluations that did not end: steps {steps}; resuming the run repeats them")

    def raise_first_failure(self) -> None:
        """Raise if an evaluation has failed, or the disk still refuses their summary.

        Raises:
            CommandFailedError: Names the first one, or the file.
        """
        if self._summary_due:
            raise CommandFailedError(
                f"{self._folder.summary}: cannot be written; free space and repeat the command"
            )
        if self._failures:
            first = self._failures[0]
            raise CommandFailedError(f"the evaluation of step {first.step} failed: {first.error}")

    def _due(self, refresh: bool) -> list[int]:
        every = self._config.eval.every
        if every == 0:
            return []  # without a request to an object store, which may be unavailable
        return due_steps(self._watch.steps(refresh), every, self._config.trainer.steps, self._submitted)

    def _submit(self, step: int) -> None:
        self._submitted.add(step)
        self._bars[step] = self._reporter.bar(f"evaluate step {step}")
        self._group.submit(
            EvaluationJob(
                step,
                self._checkpoints.checkpoint_url(step),
                self._folder.evaluation(step),
                self._settings(),
            )
        )

    def _settings(self) -> EvaluationConfig:
        """Those of the run; without world-model rollouts where nothing learns to predict frames."""
        if self._config.data.mixture.world > 0:
            return self._config.eval
        return replace(self._config.eval, imagine_frames=0)

    def _report(self, outcome: EvaluationOutcome) -> None:
        step = outcome.step
        if outcome.cancelled:
            self._reporter.line(f"evaluation of step {step} cancelled for a newer checkpoint")
            self._reporter.log_event({"event": "evaluation_given_up", "step": step})
        elif outcome.results is None:
            failure = self._with_cause(outcome)
            self._failures.append(failure)
            self._reporter.log_event({"event": "evaluation_failed", "step": step, "error": failure.error})
            self._reporter.line(f"evaluation of step {step} failed: {failure.error}")
        else:
            self._report_results(step, outcome.results)

    def _update_summary(self) -> None:
        """Write the results into `summary.json`; where the disk refuses, at the next poll again."""
        try:
            update_summary(self._folder)
        except OSError as error:
            if not self._summary_due:
                self._reporter.line(
                    f"{self._folder.summary}: cannot be written ({error}); it follows when it can"
                )
            self._summary_due = True
        except InputError as error:  # a file that was damaged since the start does not end the training
            self._summary_due = False
            self._reporter.line(str(error))
        else:
            self._summary_due = False

    def _with_cause(self, failure: EvaluationOutcome) -> EvaluationOutcome:
        """The same failure, explained where its checkpoint does not exist any more."""
        if failure.step in self._watch.steps(refresh=True):
            return failure
        keep_last = f"checkpointing.keep_last={self._config.checkpointing.keep_last}"
        error = f"its checkpoint was removed before it was read ({keep_last}); keep more, or raise eval.every"
        return replace(failure, error=error)

    def _report_results(self, step: int, results: Results) -> None:
        episodes = int(results["episodes"])
        self._bars[step].update(episodes, episodes, detail=describe_results(results))
        self._update_summary()
        counts = {key: results.get(key) for key in _EVENT_KEYS}
        self._reporter.log_event({"event": "evaluated", "step": step, **counts})
        self._reporter.log_values(step, wandb_values(results, self._folder.evaluation(step)))


def describe_results(results: Mapping[str, Any]) -> str:
    """Successes and errors of an evaluation in a few words."""
    text = f"{results['successes']} of {results['episodes']} episodes succeeded"
    return f"{text}, {results['errors']} ended in an error" if results["errors"] else text


def update_summary(folder: RunFolder) -> None:
    """Write the results of all evaluations of a run into its `summary.json`.

    Raises:
        InputError: One of these files is damaged.
    """
    evaluations = _read_results(folder)
    folder.update_summary(
        evaluations=[{key: results.get(key) for key in _SUMMARY_KEYS} for results in evaluations]
    )


def _read_results(folder: RunFolder) -> list[Results]:
    """The results of all evaluations of a run, ascending in step."""
    paths = files_by_step(folder.evaluations, RESULTS_FILE).values()
    return [read_json_object(path, "remove it: its evaluation is repeated") for path in paths]


def wandb_values(results: Mapping[str, Any], out: Path) -> dict[str, float | Path]:
    """Numbers, videos and pictures of one evaluation under their names in W&B.

    The names are the same for every checkpoint: a video's has its task and initial state, not its outcome.

    Args:
        results: Content of its `results.json`.
        out: Its folder.
    """
    values: dict[str, float | Path] = {f"eval/{key}": float(results[key]) for key in ("episodes", "errors")}
    values |= {f"eval/{name}": value for name, value in _rates(results).items()}
    tasks = {row["number"]: str(row["task"]) for row in results.get("per_task", ())}
    for row in results.get("per_task", ()):
        values |= {f"eval/{name}/{row['task']}": value for name, value in _rates(row).items()}
    for row in results.get("per_category", ()):
        values |= {f"eval/{name}/category/{row['category']}": value for name, value in _rates(row).items()}
    values |= {f"world_model/{name}": value for name, value in results.get("world_model", {}).items()}
    for row in results.get("per_episode", ()):
        if row["video"] is not None and (out / row["video"]).is_file():
            values[f"eval/{tasks[row['task']]}_state_{row['initial_state']:02d}"] = out / row["video"]
    rollout = {"eval/imagine": f"{IMAGINE_STEM}.png", "eval/imagine_video": f"{IMAGINE_STEM}.mp4"}
    return values | {name: out / file for name, file in rollout.items() if (out / file).is_file()}


def _rates(results: Mapping[str, Any]) -> dict[str, float]:
    """Success rate, ends of its 95 % interval and steps to success, of a suite or a task, where measured."""
    if results["success_rate"] is None:  # every episode ended in an error
        return {}
    low, high = results.get("wilson_95", (None, None))
    values = {
        "success_rate": results["success_rate"],
        "success_low_95": low,
        "success_high_95": high,
        "steps_to_success": results.get("mean_steps_to_success"),  # none without a success
    }
    return {name: float(value) for name, value in values.items() if value is not None}
