"""Evaluations in the report: success by step, tables of checkpoints, protocols, tasks and failures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.evaluation.results import MAX_TASK_ROWS, category_text, task_texts
from eval.report.charts import Chart, Series, line_chart
from eval.report.evaluations import EvaluationRecord, decoder_of, episode_key, newest
from eval.report.json_values import Json, integer, mapping, number, rows
from eval.report.run_contents import RunContents

_MAX_FAILURES = 24
_NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluated checkpoint."""

    step: str
    suite: str
    success: str
    interval: str
    episodes: str
    errors: int


@dataclass(frozen=True)
class ProtocolRow:
    """How the last evaluation of a suite was made."""

    suite: str
    policy: str
    horizon: str
    states: str
    cameras: str
    state: str
    renderer: str
    precision: str
    decoder: str
    versions: str


@dataclass(frozen=True)
class TaskRow:
    """One task of a suite's last evaluation."""

    suite: str
    step: str
    task: str
    successes: str
    interval: str
    steps: str
    episodes: str
    errors: int


@dataclass(frozen=True)
class FailureRow:
    """A failing episode of a suite's last evaluation.

    Attributes:
        video: Name of its video, or why there is none.
        anchor: Id of the video's tile on the page; None: it is not there.
    """

    suite: str
    step: str
    task: str
    initial_state: str
    outcome: str
    video: str
    anchor: str | None


def success_chart(run: RunContents) -> Chart | None:
    """Success rate by step with 95 % Wilson intervals, one line per suite."""
    evaluations = [
        e for e in run.evaluations if e.step is not None and success_rate_of(e.results) is not None
    ]
    series: list[Series] = []
    for tone, label in enumerate(sorted({e.label for e in evaluations})):
        chosen = [e for e in evaluations if e.label == label]
        points = [(float(e.step or 0), 100 * (success_rate_of(e.results) or 0.0)) for e in chosen]
        intervals = [(100 * low, 100 * high) for low, high in map(interval, chosen)]
        series.append(Series(label, points, tone % 4 + 1, dots=True, intervals=intervals))
    return line_chart("Success by step", "%, with 95 % intervals", series, y_range=(0.0, 100.0))


def evaluation_row(evaluation: EvaluationRecord) -> EvaluationRow:
    """The table row of one evaluated checkpoint."""
    rate, (low, high) = success_rate_of(evaluation.results), interval(evaluation)
    return EvaluationRow(
        step=step_text(evaluation),
        suite=evaluation.label,
        success="not measured" if rate is None else f"{100 * rate:.0f} %",
        interval=f"{100 * low:.0f} to {100 * high:.0f} %",
        episodes=_integer(number(evaluation.results, "episodes")),
        errors=int(number(evaluation.results, "errors") or 0),
    )


def protocol_rows(run: RunContents) -> list[ProtocolRow]:
    """How the last evaluation of each suite was made, as far as its results say."""
    return [_protocol_row(evaluation) for evaluation in newest(run.evaluations)]


def _protocol_row(evaluation: EvaluationRecord) -> ProtocolRow:
    results = evaluation.results
    settings = mapping(results, "policy_settings")
    cameras = settings.get("cameras")
    horizon = integer(results, "horizon")
    return ProtocolRow(
        suite=evaluation.label,
        policy=str(results.get("policy") or _NOT_RECORDED),
        horizon=_NOT_RECORDED if horizon is None else f"{horizon} steps",
        states=_states(results),
        cameras=", ".join(map(str, cameras)) if isinstance(cameras, list) else _NOT_RECORDED,
        state=("yes" if "state_ranges" in settings else "no") if settings else _NOT_RECORDED,
        renderer=str(results.get("renderer") or _NOT_RECORDED),
        precision=str(results.get("precision", _NOT_RECORDED) or "-"),
        decoder=decoder_of(results) or "-",
        versions=", ".join(f"{name} {version}" for name, version in mapping(results, "versions").items()),
    )


def _states(results: Json) -> str:
    """Initial states as text: `0 to 49`, or `0, 3, 7` where some between are missing."""
    values = results.get("seeds")
    states = [int(value) for value in values if isinstance(value, int)] if isinstance(values, list) else []
    if not states:
        return _NOT_RECORDED
    if len(states) > 2 and states == list(range(states[0], states[0] + len(states))):
        return f"{states[0]} to {states[-1]}"
    return ", ".join(map(str, states))


def evaluation_notes(run: RunContents) -> list[str]:
    """Caveats for comparing the numbers."""
    notes: list[str] = []
    if any(e.results.get("standin_assets") for e in run.evaluations):
        notes.append(
            "Some simulator assets are stand-ins: not comparable with published numbers to the digit."
        )
    if any((number(e.results, "errors") or 0) > 0 for e in run.evaluations):
        notes.append("Episodes that ended in a simulator error are counted as errors, not as failures.")
    return notes + sorted({text for evaluation in run.evaluations for text in _caveats(evaluation)})


def _caveats(evaluation: EvaluationRecord) -> list[str]:
    """What an evaluation says of itself: files that were not verified, versions that are not tested."""
    notes = evaluation.results.get("notes")
    return [f"{note}." for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def task_rows(run: RunContents) -> list[TaskRow]:
    """Categories and tasks of each suite's last evaluation; empty for a single task.

    The tasks of a suite that has more than a hundred are left out, its categories are not.
    """
    tasks = [(e, text, row) for e in newest(run.evaluations) for text, row in _listed_rows(e.results)]
    if len(tasks) < 2:
        return []
    return [
        TaskRow(
            suite=evaluation.label,
            step=step_text(evaluation),
            task=text,
            successes=_integer(number(row, "successes")),
            interval=interval_text(row),
            steps=_integer(steps) if (steps := number(row, "mean_steps_to_success")) is not None else "-",
            episodes=_integer(number(row, "episodes")),
            errors=int(number(row, "errors") or 0),
        )
        for evaluation, text, row in tasks
    ]


def _listed_rows(results: Json) -> list[tuple[str, Json]]:
    """Categories and tasks, in words, and their rows."""
    tasks = rows(results, "per_task")
    listed = [(_category(row), row) for row in rows(results, "per_category")]
    if len(tasks) <= MAX_TASK_ROWS:
        listed += zip(task_texts(tasks), tasks, strict=True)
    return listed


def _category(row: Json) -> str:
    """A category, and how many tasks it has."""
    published = mapping(row, "published")
    rates = {model: rate for model in published if (rate := number(published, model)) is not None}
    return category_text({"category": row["category"], "tasks": integer(row, "tasks"), "published": rates})


def first_failures(evaluation: EvaluationRecord) -> list[Json]:
    """The first failing episode (or error) of each task: its row of `per_episode`."""
    failures: dict[int | None, Json] = {}
    for row in rows(evaluation.results, "per_episode"):
        if not row.get("success"):
            failures.setdefault(integer(row, "task"), row)
    return list(failures.values())


def failure_rows(run: RunContents, anchors: Mapping[Path, str]) -> tuple[list[FailureRow], int]:
    """The first failures of each suite's last evaluation, and the number of those left out.

    Args:
        run: The run.
        anchors: Video -> id of its tile on the page.
    """
    failures = [(e, row) for e in newest(run.evaluations) for row in first_failures(e)]
    shown = [_failure_row(evaluation, row, anchors) for evaluation, row in failures[:_MAX_FAILURES]]
    return shown, len(failures) - len(shown)


def _failure_row(evaluation: EvaluationRecord, row: Json, anchors: Mapping[Path, str]) -> FailureRow:
    key = episode_key(row)
    file = evaluation.videos.get(key) if key is not None else None
    error = row.get("error")
    no_video = f"no video: {row['video_error']}" if row.get("video_error") else "no video"
    return FailureRow(
        suite=evaluation.label,
        step=step_text(evaluation),
        task=task_text(evaluation, row),
        initial_state=_integer(number(row, "initial_state")),
        outcome=f"error: {error}" if error else f"not solved in {_integer(number(row, 'steps'))} steps",
        video=no_video if file is None else file.name,
        anchor=None if file is None else anchors.get(file),
    )


def task_text(evaluation: EvaluationRecord, episode: Json) -> str:
    """The task of an episode in words, or its number where the results do not name it."""
    task = integer(episode, "task")
    tasks = rows(evaluation.results, "per_task")
    for text, row in zip(task_texts(tasks), tasks, strict=True):
        if integer(row, "number") == task and text:
            return text
    return f"task {task}"


def step_text(evaluation: EvaluationRecord) -> str:
    """The evaluated step, or a dash for a policy without one."""
    return "-" if evaluation.step is None else str(evaluation.step)


def interval_text(results: Json) -> str:
    """The 95 % interval of a success rate in results or one of their rows."""
    ends = _ends(results)
    return "-" if ends is None else f"{100 * ends[0]:.0f} to {100 * ends[1]:.0f} %"


def interval(evaluation: EvaluationRecord) -> tuple[float, float]:
    """The 95 % interval of the success rate; the rate itself where the results have none."""
    rate = success_rate_of(evaluation.results) or 0.0
    return _ends(evaluation.results) or (rate, rate)


def _ends(results: Json) -> tuple[float, float] | None:
    ends = results.get("wilson_95")
    if not isinstance(ends, Sequence) or len(ends) != 2:
        return None
    low, high = (number({"end": end}, "end") for end in ends)
    return None if low is None or high is None else (low, high)


def success_rate_of(results: Json) -> float | None:
    """Solved share of the episodes; None if all of them ended in an error."""
    return number(results, "success_rate")


def _integer(value: float | None) -> str:
    return "0" if value is None else f"{value:.0f}"
