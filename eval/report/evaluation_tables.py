"""What the report says of a run: figures, charts, table rows. Plain values for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.evaluation.published_rates import published_rates
from eval.report.charts import Chart, Series, format_number, line_chart
from eval.report.run_contents import Evaluation, Json, RunFolder, mapping, number, rows
from eval.report.training import layout

_MOST_FAILURES = 12


@dataclass(frozen=True)
class Figure:
    """One large number at the top."""

    label: str
    value: str
    unit: str = ""
    note: str = ""


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
    """An episode of the last evaluation that was not solved."""

    task: str
    initial_state: str
    outcome: str
    video: str


def lead(run: RunFolder) -> str:
    """One sentence on the run: how far, over how many tokens, on which ranks."""
    if not run.steps:
        return "Nothing was trained yet."
    last = run.steps[-1]
    parts = [f"{_whole(number(last, 'step'))} steps"]
    tokens = number(run.summary, "tokens") or number(last, "tokens")
    if tokens:
        parts.append(f"{format_number(tokens)} tokens")
    parallel = mapping(run.summary, "parallel")
    if parallel:
        parts.append(f"last on {layout(parallel)}")
    return ", ".join(parts) + "."


def figures(run: RunFolder) -> list[Figure]:
    """The run in a handful of numbers; one that was not measured is left out."""
    shown: list[Figure] = []
    for key, label in (("loss_action", "Loss of actions"), ("loss_image", "Loss of images")):
        values = [v for line in run.steps if (v := number(line, key)) is not None]
        if values:
            shown.append(
                Figure(label, format_number(values[-1]), "nats a token", f"from {format_number(values[0])}")
            )
    if run.evaluations:
        last = run.evaluations[-1]
        row = evaluation_row(last)
        episodes = "1 episode" if row.episodes == "1" else f"{row.episodes} episodes"
        shown.append(Figure("Success", row.success, "", f"{episodes}, step {row.step}"))
    speed, since = number(run.summary, "tokens_per_second"), "since the last start"
    if speed is None:
        speed, since = _mean(run.steps, "tokens_per_second"), f"over {len(run.steps)} logged steps"
    if speed is not None:
        shown.append(Figure("Speed", format_number(speed), "tokens/s", since))
    mfu = number(run.summary, "mfu") or _mean(run.steps, "mfu")
    if mfu is not None:
        shown.append(Figure("Model FLOPs utilisation", f"{100 * mfu:.1f}", "%", "of the devices' peak"))
    return shown


def success_chart(run: RunFolder) -> Chart | None:
    """Success rate by step with 95 % Wilson intervals, one line a suite."""
    series: list[Series] = []
    for tone, suite in enumerate(sorted({_suite(e) for e in run.evaluations}), start=1):
        chosen = [e for e in run.evaluations if _suite(e) == suite and _rate(e) is not None]
        points = [(float(e.step), 100 * rate) for e in chosen if (rate := _rate(e)) is not None]
        intervals = [(100 * low, 100 * high) for low, high in map(_interval, chosen)]
        series.append(Series(suite, points, (tone - 1) % 4 + 1, dots=True, intervals=intervals))
    return line_chart("Success by step", "%, with 95 % intervals", series, y_range=(0.0, 100.0))


def evaluation_row(evaluation: Evaluation) -> EvaluationRow:
    """The table row of one evaluated checkpoint."""
    rate, (low, high) = _rate(evaluation), _interval(evaluation)
    return EvaluationRow(
        step=evaluation.step,
        suite=_suite(evaluation),
        success="not measured" if rate is None else f"{100 * rate:.0f} %",
        interval=f"{100 * low:.0f} to {100 * high:.0f} %",
        episodes=_whole(number(evaluation.results, "episodes")),
        errors=int(number(evaluation.results, "errors") or 0),
    )


def evaluation_notes(run: RunFolder) -> list[str]:
    """What a reader must know before comparing these numbers."""
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
            notes.append(f"Published on {suite}: {listed}.")
    return notes


def task_rows(run: RunFolder) -> list[TaskRow]:
    """Tasks of the last evaluated step, where there is more than one."""
    if not run.evaluations:
        return []
    step = run.evaluations[-1].step
    per_task = [row for e in run.evaluations if e.step == step for row in rows(e.results, "per_task")]
    if len(per_task) < 2:
        return []
    return [
        TaskRow(
            task=str(row.get("instruction") or row.get("task", "")),
            successes=_whole(number(row, "successes")),
            interval=interval_text(row),
            steps=_whole(steps) if (steps := number(row, "mean_steps_to_success")) is not None else "-",
            episodes=_whole(number(row, "episodes")),
            errors=int(number(row, "errors") or 0),
        )
        for row in per_task
    ]


def failure_rows(run: RunFolder) -> list[FailureRow]:
    """The first failing episodes of the last evaluated step, errors among them: at most one a task."""
    if not run.evaluations:
        return []
    found: dict[tuple[str, float | None], FailureRow] = {}
    for evaluation in run.evaluations:
        if evaluation.step != run.evaluations[-1].step:
            continue
        names = {
            number(row, "number"): str(row.get("instruction", ""))
            for row in rows(evaluation.results, "per_task")
        }
        for row in rows(evaluation.results, "per_episode"):
            task = number(row, "task")
            if row.get("success") or (_suite(evaluation), task) in found:
                continue
            error = row.get("error")
            steps = _whole(number(row, "steps"))
            found[_suite(evaluation), task] = FailureRow(
                task=names.get(task) or f"task {_whole(task)}",
                initial_state=_whole(number(row, "initial_state")),
                outcome=f"error: {error}" if error else f"not solved in {steps} steps",
                video=str(row.get("video") or "not filmed"),
            )
    return list(found.values())[:_MOST_FAILURES]


def interval_text(results: Json) -> str:
    """The 95 % interval of a success rate in results or one of their rows."""
    ends = results.get("wilson_95")
    if not isinstance(ends, list) or len(ends) != 2:
        return "-"
    low, high = (number({"end": end}, "end") for end in ends)
    return "-" if low is None or high is None else f"{100 * low:.0f} to {100 * high:.0f} %"


def _suite(evaluation: Evaluation) -> str:
    return str(evaluation.results.get("suite", "suite"))


def _rate(evaluation: Evaluation) -> float | None:
    """Solved share of the episodes; None where every one ended in an error."""
    return number(evaluation.results, "success_rate")


def _interval(evaluation: Evaluation) -> tuple[float, float]:
    ends = evaluation.results.get("wilson_95")
    low, high = ends if isinstance(ends, list) and len(ends) == 2 else (None, None)
    found = {"low": low, "high": high}
    rate = _rate(evaluation) or 0.0
    low, high = number(found, "low"), number(found, "high")
    return (rate, rate) if low is None or high is None else (low, high)


def _mean(lines: Sequence[Json], key: str) -> float | None:
    values = [value for line in lines if (value := number(line, key)) is not None]
    return sum(values) / len(values) if values else None


def _whole(value: float | None) -> str:
    return "0" if value is None else f"{value:.0f}"
