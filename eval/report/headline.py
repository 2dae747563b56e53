"""Headline of the report: one sentence and a handful of figures about the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.report.charts import format_number
from eval.report.evaluation_tables import evaluation_row
from eval.report.evaluations import newest
from eval.report.json_values import Json, mapping, number
from eval.report.run_contents import RunContents
from eval.report.training_charts import layout


@dataclass(frozen=True)
class Figure:
    """One large number of the headline."""

    label: str
    value: str
    unit: str = ""
    note: str = ""


def summary_sentence(run: RunContents) -> str:
    """Steps, tokens and parallel layout of the run, as a sentence; of an evaluation what was evaluated."""
    if not run.is_run:
        policies = sorted({str(e.results.get("policy", "a policy")) for e in run.evaluations})
        return f"Evaluation of {', '.join(policies)}." if policies else "World-model rollouts."
    if not run.steps:
        return "Nothing was trained yet."
    last = run.steps[-1]
    parts = [f"{number(last, 'step') or 0:.0f} steps"]
    tokens = number(run.summary, "tokens") or number(last, "tokens")
    if tokens:
        parts.append(f"{format_number(tokens)} tokens")
    parallel = mapping(run.summary, "parallel")
    if parallel:
        parts.append(f"last on {layout(parallel)}")
    return ", ".join(parts) + "."


def figures(run: RunContents) -> list[Figure]:
    """Key figures of the run; those that were not measured are left out."""
    figures: list[Figure] = []
    for key, label in (("loss_action", "Loss of actions"), ("loss_image", "Loss of images")):
        values = [v for line in run.steps if (v := number(line, key)) is not None]
        if values:
            figures.append(
                Figure(label, format_number(values[-1]), "nats a token", f"from {format_number(values[0])}")
            )
    for evaluation in newest(run.evaluations):
        row = evaluation_row(evaluation)
        episodes = "1 episode" if row.episodes == "1" else f"{row.episodes} episodes"
        note = episodes if evaluation.step is None else f"{episodes}, step {row.step}"
        figures.append(Figure(f"Success on {row.suite}", row.success, "", note))
    speed, since = number(run.summary, "tokens_per_second"), "since the last start"
    if speed is None:
        speed, since = _mean(run.steps, "tokens_per_second"), f"over {len(run.steps)} logged steps"
    if speed is not None:
        figures.append(Figure("Speed", format_number(speed), "tokens/s", since))
    mfu = number(run.summary, "mfu") or _mean(run.steps, "mfu")
    if mfu is not None:
        figures.append(Figure("Model FLOPs utilisation", f"{100 * mfu:.1f}", "%", "of the devices' peak"))
    return figures


def _mean(lines: Sequence[Json], key: str) -> float | None:
    values = [value for line in lines if (value := number(line, key)) is not None]
    return sum(values) / len(values) if values else None
