"""The success rate of each suite's last evaluation beside the published ones."""

from __future__ import annotations

from dataclasses import dataclass

from eval.evaluation.reproduction import NOT_RECORDED, PublishedComparison, compare_with_published
from eval.report.evaluation_tables import interval, step_text
from eval.report.evaluations import EvaluationRecord, newest
from eval.report.json_values import number
from eval.report.run_contents import RunContents


@dataclass(frozen=True)
class ReproductionRow:
    """One published rate on the page."""

    suite: str
    step: str
    model: str
    published: str
    measured: str
    interval: str
    verdict: str


def reproduction_rows(run: RunContents) -> list[ReproductionRow]:
    """Every published rate of the suites that were evaluated, and whether ours agrees."""
    return [
        ReproductionRow(
            suite=evaluation.label,
            step=step_text(evaluation),
            model=row.model,
            published=f"{100 * row.published:.1f} %",
            measured="-" if row.measured is None else f"{100 * row.measured:.1f} %",
            interval=f"{100 * row.wilson_95[0]:.1f} to {100 * row.wilson_95[1]:.1f} %",
            verdict=row.verdict_text,
        )
        for evaluation in newest(run.evaluations)
        for row in _comparisons(evaluation)
    ]


def _comparisons(evaluation: EvaluationRecord) -> list[PublishedComparison]:
    """Computed anew: joined evaluations have other rates than each of them."""
    results = evaluation.results
    stored = results.get("published_differences")
    differences = [str(each) for each in stored] if isinstance(stored, list) else [NOT_RECORDED]
    return compare_with_published(
        str(results.get("suite")), number(results, "success_rate"), interval(evaluation), differences
    )
