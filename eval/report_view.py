"""What the report says of a run: figures, charts, table rows. Plain values for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.charts import Chart, Mark, Series, format_number, line_chart
from eval.run_folder import Evaluation, Json, RunFolder, mapping, number, rows


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
    episodes: str
    errors: int


def lead(run: RunFolder) -> str:
    """One sentence on the run: how far, over how many tokens, on which ranks."""
    if not run.steps:
        return "Nothing was trained yet."
    last = run.steps[-1]
    parts = [f"{_whole(number(last, 'step'))} steps"]
    tokens = number(run.summary, "tokens") or number(last, "tokens")
    if tokens:
        parts.append(f"{format_number(tokens)} tokens")
    layout = mapping(run.summary, "parallel")
    if layout:
        parts.append(f"last on {_layout(layout)}")
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
        shown.append(Figure("Success", row.success, "", f"{row.episodes} episodes, step {row.step}"))
    speed = number(run.summary, "tokens_per_second") or _mean(run.steps, "tokens_per_second")
    if speed is not None:
        shown.append(Figure("Speed", format_number(speed), "tokens/s", f"over {len(run.steps)} logged steps"))
    mfu = number(run.summary, "mfu") or _mean(run.steps, "mfu")
    if mfu is not None:
        shown.append(Figure("Model FLOPs utilisation", f"{100 * mfu:.1f}", "%", "of the devices' peak"))
    return shown


def learning_charts(run: RunFolder) -> list[Chart]:
    """Curves over steps, with every resume marked."""
    placed = [(number(event, "step"), _event_label(event)) for event in run.events]
    marks = [Mark(step, label) for step, label in placed if step is not None]
    percent = 100.0
    charts = [
        line_chart(
            "Loss of actions", "nats a token", [_curve(run, "loss_action", "cross-entropy", 1)], marks=marks
        ),
        line_chart(
            "Loss of images", "nats a token", [_curve(run, "loss_image", "cross-entropy", 2)], marks=marks
        ),
        line_chart(
            "Token accuracy",
            "%",
            [
                _curve(run, "accuracy_action", "actions", 1, percent),
                _curve(run, "accuracy_image", "images", 2, percent),
            ],
            marks=marks,
            y_range=(0.0, 100.0),
        ),
        line_chart(
            "Gradient norm", "before clipping", [_curve(run, "gradient_norm", "global", 3)], marks=marks
        ),
        line_chart("Learning rate", "", [_curve(run, "learning_rate", "peak group", 4)], marks=marks),
        line_chart(
            "Time of a step",
            "s",
            [_curve(run, "step_time", "whole step", 1), _curve(run, "data_wait", "waiting for data", 2)],
            marks=marks,
        ),
    ]
    return [chart for chart in charts if chart is not None]


def event_sentence(event: Json) -> str:
    """What happened, in a sentence."""
    step = number(event, "step")
    at = f" at step {_whole(step)}" if step is not None else ""
    before, after = mapping(event, "parallel_before"), mapping(event, "parallel")
    text = f"{str(event.get('event', 'event')).capitalize()}{at}"
    if before and after and before != after:
        return f"{text}: {_layout(before)} before, {_layout(after)} after."
    return f"{text} on {_layout(after)}." if after else f"{text}."


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
            episodes=_whole(number(row, "episodes")),
            errors=int(number(row, "errors") or 0),
        )
        for row in per_task
    ]


def _curve(run: RunFolder, key: str, label: str, tone: int, factor: float = 1.0) -> Series:
    values = [(float(line["step"]), number(line, key)) for line in run.steps]
    return Series(label, [(step, factor * value) for step, value in values if value is not None], tone)


def _event_label(event: Json) -> str:
    layout = mapping(event, "parallel")
    text = str(event.get("event", "event"))
    return f"{text}, {_layout(layout)}" if layout else text


def _layout(parallel: Json) -> str:
    tensor, data = (_whole(number(parallel, key)) for key in ("tensor", "data"))
    stage = number(parallel, "zero_stage")
    return f"TP {tensor} x DP {data}" + (f", ZeRO-{_whole(stage)}" if stage is not None else "")


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
