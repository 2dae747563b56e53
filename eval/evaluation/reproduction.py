"""A measured success rate beside the published ones: inside or outside its interval, or not comparable.

A published rate is compared only where the evaluation follows the published protocol; else the differences
are named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from eval.evaluation.provenance import Provenance
from eval.evaluation.published_rates import (
    INCOMPLETE,
    PLUS_STATES,
    PUBLISHED_STATES,
    PUBLISHED_TASKS,
    is_plus,
    published_rates,
)
from eval.simulator.interface import TaskInfo

Verdict = Literal["inside the interval", "outside the interval", "not comparable"]

NOTHING_MEASURED = "no episode ended without an error"
NOT_RECORDED = "the results are of a version that did not record its protocol"


@dataclass(frozen=True)
class PublishedComparison:
    """One published rate beside the measured one; rates are 0 to 1.

    Attributes:
        model: The published model.
        published: Its rate.
        measured: Ours; None: nothing was measured.
        wilson_95: The 95 % interval of ours.
        verdict: Whether the published rate lies in this interval.
        reason: Why they are not comparable; empty: they are.
    """

    model: str
    published: float
    measured: float | None
    wilson_95: tuple[float, float]
    verdict: Verdict
    reason: str = ""

    @property
    def verdict_text(self) -> str:
        """The verdict, with its reason."""
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict

    def to_json(self) -> dict[str, Any]:
        """The row as `results.json` has it."""
        return asdict(self)


def compare_with_published(
    suite: str, measured: float | None, wilson_95: tuple[float, float], differences: Sequence[str]
) -> list[PublishedComparison]:
    """Every published rate of a suite beside the measured one.

    Args:
        suite: Name of the suite.
        measured: Success rate, 0 to 1; None: no episode ended without an error.
        wilson_95: Its 95 % interval.
        differences: In what the evaluation differs from the published protocol.
    """
    reason = ", ".join(differences)
    if measured is None:
        reason = ", ".join([NOTHING_MEASURED, *differences])
    low, high = wilson_95
    rows: list[PublishedComparison] = []
    for model, published in published_rates(suite).items():
        verdict: Verdict = "inside the interval" if low <= published <= high else "outside the interval"
        if reason:
            verdict = "not comparable"
        rows.append(PublishedComparison(model, published, measured, (low, high), verdict, reason))
    return rows


def protocol_differences(
    suite: str,
    states: Mapping[int, int],
    suite_tasks: int | None,
    tasks: Sequence[TaskInfo],
    horizon: int | None,
    standin_assets: bool,
    provenance: Provenance | None,
) -> list[str]:
    """In what an evaluation differs from the published protocol; empty where nothing is published.

    Args:
        suite: Name of the suite.
        states: Task -> number of its initial states.
        suite_tasks: Number of all tasks of the suite; None: not known.
        tasks: The tasks that were run.
        horizon: Maximum length of an episode in steps; None: the suite's own.
        standin_assets: Whether some visual assets were stand-ins.
        provenance: What the outcomes depend on; None: not known.
    """
    if not published_rates(suite):
        return []
    differences = states_difference(suite, states, suite_tasks)
    if suite in INCOMPLETE:
        differences.append(INCOMPLETE[suite])
    if any(horizon not in (None, task.horizon) for task in tasks):
        differences.append(f"a horizon of {horizon} steps, not the suite's")
    if standin_assets:
        differences.append("some assets are stand-ins")
    if provenance is not None and provenance.reset != "hard":
        differences.append(f"{provenance.reset} resets, not hard ones")
    if provenance is not None and provenance.observations != "published":
        differences.append(f"observations={provenance.observations}, not published")
    return differences


def states_difference(suite: str, states: Mapping[int, int], suite_tasks: int | None) -> list[str]:
    """What is missing of the published episodes, in words; empty: nothing.

    Args:
        suite: Name of the suite.
        states: Task -> number of its initial states.
        suite_tasks: Number of all tasks of the suite; None: not known.
    """
    fewest, most = min(states.values(), default=0), max(states.values(), default=0)
    if not is_plus(suite):
        if len(states) >= PUBLISHED_TASKS and fewest >= PUBLISHED_STATES:
            return []
        return [
            f"{len(states)} tasks of at least {fewest} initial states, not {PUBLISHED_TASKS} of "
            f"{PUBLISHED_STATES}"
        ]
    differences = []
    if suite_tasks is not None and len(states) < suite_tasks:
        differences.append(f"{len(states)} of its {suite_tasks} tasks")
    if most > PLUS_STATES:
        differences.append(f"up to {most} initial states a task, not {PLUS_STATES}")
    return differences


def joined_differences(
    suite: str,
    differences: Sequence[str],
    before: Mapping[int, int],
    after: Mapping[int, int],
    suite_tasks: int | None,
) -> list[str]:
    """The differences of evaluations that were joined, which have more episodes than the first of them.

    Args:
        suite: Name of the suite.
        differences: Those of the first.
        before: Task -> number of initial states in the first.
        after: The same in all of them.
        suite_tasks: As of `states_difference`.
    """
    of_first = states_difference(suite, before, suite_tasks)
    others = [difference for difference in differences if difference not in of_first]
    return [*states_difference(suite, after, suite_tasks), *others]


def reproduction_table(suite: str, rows: Sequence[PublishedComparison]) -> Table | None:
    """The comparison for the console; None where nothing is published."""
    if not rows:
        return None
    table = Table(title=f"{suite}: published rates", title_justify="left", caption_justify="left")
    table.add_column("published")
    for name in ("rate", "measured", "95 %"):
        table.add_column(name, justify="right")
    table.add_column("published rate is")
    for row in rows:
        low, high = row.wilson_95
        table.add_row(
            escape(row.model),
            f"{100 * row.published:.1f} %",
            "-" if row.measured is None else f"{100 * row.measured:.1f} %",
            f"{100 * low:.1f}-{100 * high:.1f} %",
            f"{row.verdict} *" if row.reason else row.verdict,
        )
    if rows[0].reason:
        table.caption = escape(f"* not the published protocol; here: {rows[0].reason}")
    return table
