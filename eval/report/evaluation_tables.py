"""Evaluations in the report: success by step, tables of checkpoints, tasks and failing episodes."""

from __future__ import annotations

from dataclasses import dataclass

from eval.evaluation.published_rates import published_rates
from eval.report.charts import Chart, Series, line_chart
from eval.report.run_contents import EvaluationRecord, Json, RunContents, number, rows

_MAX_FAILURES = 12


@dataclass(frozen=True)
class EvaluationRow:
    """One evaluated checkpoint."""

    step: int
    suite: str
    success: str
    interval: str
    episodes: str
    errors: int


@dataclass(frozen=True)
class TaskRow:
    """One task of the last evaluation."""

    task: str
    successes: str
    interval: str
    steps: str
    episodes: str
    errors: int


@dataclass(frozen=True)
class FailureRow:
    """A failing episode of the last evaluation."""

    task: str
    initial_state: str
    outcome: str
    video: str


def success_chart(run: RunContents) -> Chart | None:
    """Success rate by step with 95 % Wilson intervals, one line per suite."""
    series: list[Series] = []
    for tone, suite in enumerate(sorted({_suite(e) for e in run.evaluations}), start=1):
        chosen = [e for e in run.evaluations if _suite(e) == suite and _rate(e) is not None]
        points = [(float(e.step), 100 * rate) for e in chosen if (rate := _rate(e)) is not None]
        intervals = [(100 * low, 100 * high) for low, high in map(_interval, chosen)]
        series.append(Series(suite, points, (tone - 1) % 4 + 1, dots=True, intervals=intervals))
    return line_chart("Success by step", "%, with 95 % intervals", series, y_range=(0.0, 100.0))


def evaluation_row(evaluation: EvaluationRecord) -> EvaluationRow:
    """The table row of one evaluated checkpoint."""
    rate, (low, high) = _rate(evaluation), _interval(evaluation)
    return EvaluationRow(
        step=evaluation.step,
        suite=_suite(evaluation),
        success="not measured" if rate is None else f"{100 * rate:.0f} %",
        interval=f"{100 * low:.0f} to {100 * high:.0f} %",
        episodes=_integer(number(evaluation.results, "episodes")),
        errors=int(number(evaluation.results, "errors") or 0),
    )


def evaluation_notes(run: RunContents) -> list[str]:
    """Caveats for comparing the numbers."""
    notes: list[str] = []
    if any(e.results.get("standin_assets") for e in run.evaluations):
        notes.append(
            "Some simulator assets are stand-ins: not comparable with published numbers to the digit."
        )
    if any((number(e.results, "errors") or 0) > 0 for e in run.evaluations):
        notes.append("Episodes that ended in a simulator error are counted as errors, not as failures.")
    for suite in sorted({_suite(e) for e in run.evaluations}):
        if rates := published_rates(suite):
            listed = ", ".join(f"{model} {100 * rate:.1f} %" for model, rate in rates.items())
            notes.append(f"Published on {suite}: {listed} (by another protocol: docs/evaluation.md).")
    return notes + sorted({text for evaluation in run.evaluations for text in _caveats(evaluation)})


def _caveats(evaluation: EvaluationRecord) -> list[str]:
    """What an evaluation says of itself: files that were not verified, versions that are not tested."""
    notes = evaluation.results.get("notes")
    return [f"{note}." for note in notes if isinstance(note, str)] if isinstance(notes, list) else []


def task_rows(run: RunContents) -> list[TaskRow]:
    """Tasks of the last evaluated step; empty for a single task."""
    if not run.evaluations:
        return []
    step = run.evaluations[-1].step
    per_task = [row for e in run.evaluations if e.step == step for row in rows(e.results, "per_task")]
    if len(per_task) < 2:
        return []
    return [
        TaskRow(
            task=str(row.get("instruction") or row.get("task", "")),
            successes=_integer(number(row, "successes")),
            interval=interval_text(row),
            steps=_integer(steps) if (steps := number(row, "mean_steps_to_success")) is not None else "-",
            episodes=_integer(number(row, "episodes")),
            errors=int(number(row, "errors") or 0),
        )
        for row in per_task
    ]


def failure_rows(run: RunContents) -> list[FailureRow]:
    """The first failing episode (or error) of each task at the last evaluated step."""
    if not run.evaluations:
        return []
    failures: dict[tuple[str, float | None], FailureRow] = {}
    for evaluation in run.evaluations:
        if evaluation.step != run.evaluations[-1].step:
            continue
        names = {
            number(row, "number"): str(row.get("instruction", ""))
            for row in rows(evaluation.results, "per_task")
        }
        for row in rows(evaluation.results, "per_episode"):
            task = number(row, "task")
            if row.get("success") or (_suite(evaluation), task) in failures:
                continue
            error = row.get("error")
            steps = _integer(number(row, "steps"))
            failures[_suite(evaluation), task] = FailureRow(
                task=names.get(task) or f"task {_integer(task)}",
                initial_state=_integer(number(row, "initial_state")),
                outcome=f"error: {error}" if error else f"not solved in {steps} steps",
                video=str(row.get("video") or "no video"),
            )
    return list(failures.values())[:_MAX_FAILURES]


def interval_text(results: Json) -> str:
    """The 95 % interval of a success rate in results or one of their rows."""
    ends = results.get("wilson_95")
    if not isinstance(ends, list) or len(ends) != 2:
        return "-"
    low, high = (number({"end": end}, "end") for end in ends)
    return "-" if low is None or high is None else f"{100 * low:.0f} to {100 * high:.0f} %"


def _suite(evaluation: EvaluationRecord) -> str:
    return str(evaluation.results.get("suite", "suite"))


def _rate(evaluation: EvaluationRecord) -> float | None:
    """Solved share of the episodes; None if all of them ended in an error."""
    return number(evaluation.results, "success_rate")


def _interval(evaluation: EvaluationRecord) -> tuple[float, float]:
    ends = evaluation.results.get("wilson_95")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    ends = {"low": low, "high": high}
    rate = _rate(evaluation) or 0.0
    low, high = number(ends, "low"), number(ends, "high")
    return (rate, rate) if low is None or high is None else (low, high)


def _integer(value: float | None) -> str:
    return "0" if value is None else f"{value:.0f}"
