"""`worldvla report runs=[a,b]`: several runs on one page, success rates and losses in the same charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.files import output_file
from eval.evaluation.results import task_texts
from eval.report.charts import Chart, Series, line_chart
from eval.report.evaluation_tables import evaluation_row, interval, interval_text
from eval.report.evaluations import differing_conditions, newest
from eval.report.json_values import number, rows
from eval.report.page import template, write_page
from eval.report.run_contents import RunContents, read_run

COMPARISON = "comparison.html"
_MAX_RUNS = 4  # the number of colours


@dataclass(frozen=True)
class TaskComparison:
    """One task of a suite: results of each run's last evaluation of it."""

    suite: str
    task: str
    cells: tuple[str, ...]


def write_comparison(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write a page that compares runs and return its path.

    Raises:
        InputError: Fewer than two runs or more than four, one that is no run folder, or `out` is no page
            that can be written.
    """
    if not 2 <= len(folders) <= _MAX_RUNS:
        raise InputError(f"runs: found {len(folders)}, expected 2 to {_MAX_RUNS} run folders")
    runs = comparable_runs(folders)
    names = [run.name for run in runs]
    if len(set(names)) < len(names):  # runs with the same name in several folders
        names = [str(run.path) for run in runs]
    page = output_file(out, ".html")
    text = template("comparison.html.j2").render(
        names=names,
        charts=comparison_charts(runs, names),
        evaluations=[
            (name, evaluation_row(evaluation))
            for name, run in zip(names, runs, strict=True)
            for evaluation in run.evaluations
        ],
        tasks=task_comparison(runs),
    )
    return write_page(page, text)


def comparable_runs(folders: Sequence[str | Path]) -> list[RunContents]:
    """The runs, with evaluations told apart by the conditions in which those of any two differ."""
    runs = [read_run(Path(folder)) for folder in folders]
    differing = differing_conditions([evaluation for run in runs for evaluation in run.stored])
    return [run.with_labels(differing) for run in runs]


def comparison_charts(runs: Sequence[RunContents], names: Sequence[str]) -> list[Chart]:
    """Success with intervals by suite, and losses; one line per run."""
    suites = sorted({evaluation.label for run in runs for evaluation in run.evaluations})
    charts = [
        line_chart(
            f"Success on {suite}",
            "%, with 95 % intervals",
            [_success(run, name, suite, tone) for tone, (run, name) in _numbered(runs, names)],
            y_range=(0.0, 100.0),
        )
        for suite in suites
    ]
    for key, title in (("loss_action", "Loss of actions"), ("loss_image", "Loss of images")):
        series = [
            Series(
                name,
                [(float(line["step"]), v) for line in run.steps if (v := number(line, key)) is not None],
                tone,
            )
            for tone, (run, name) in _numbered(runs, names)
        ]
        charts.append(line_chart(title, "nats a token", series))
    return [chart for chart in charts if chart is not None]


def task_comparison(runs: Sequence[RunContents]) -> list[TaskComparison]:
    """Every evaluated task: successes and interval of each run's last evaluation."""
    cells: dict[tuple[str, str], list[str]] = {}
    for column, run in enumerate(runs):
        for evaluation in newest(run.evaluations):
            tasks = rows(evaluation.results, "per_task")
            for text, row in zip(task_texts(tasks), tasks, strict=True):
                key = evaluation.label, text
                counted = int((number(row, "episodes") or 0) - (number(row, "errors") or 0))
                cell = f"{int(number(row, 'successes') or 0)}/{counted} ({interval_text(row)})"
                cells.setdefault(key, ["-"] * len(runs))[column] = cell
    return [TaskComparison(suite, task, tuple(row)) for (suite, task), row in sorted(cells.items())]


def _numbered(runs: Sequence[RunContents], names: Sequence[str]) -> list[tuple[int, tuple[RunContents, str]]]:
    return list(enumerate(zip(runs, names, strict=True), start=1))


def _success(run: RunContents, name: str, suite: str, tone: int) -> Series:
    points, intervals = [], []
    for evaluation in run.evaluations:
        rate = number(evaluation.results, "success_rate")
        if evaluation.label != suite or rate is None or evaluation.step is None:
            continue
        low, high = interval(evaluation)
        points.append((float(evaluation.step), 100 * rate))
        intervals.append((100 * low, 100 * high))
    return Series(name, points, tone, dots=True, intervals=intervals)
