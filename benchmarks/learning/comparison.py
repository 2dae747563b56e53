"""Rows of the grid compared: the order of success that WorldVLA's paper found, and what was found here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import hypot
from typing import Any, Literal

from benchmarks.learning.results import CellResult
from eval.evaluation.results import wilson

Verdict = Literal["holds", "contradicted", "better", "worse", "not decided", "not measured"]


@dataclass(frozen=True)
class Compared:
    """Two variants of a task at one K.

    Attributes:
        task: Name of the task.
        chunk: K; of the single action it is 1 all the same.
        less, more: The variants, of which the paper found `more` the better one; beyond the paper `more` is
            the one that adds something to `less`, the paper's best.
        claimed: Whether the paper compares them.
        difference: Success of `more` minus that of `less`, percent; None: not measured.
        low, high: Its 95 % interval.
    """

    task: str
    chunk: int
    less: str
    more: str
    claimed: bool
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether `more` is better, as far as the interval tells; of the paper's pairs: whether it holds."""
        if self.difference is None or self.low is None or self.high is None:
            return "not measured"
        if self.low <= 0 <= self.high:
            return "not decided"
        if self.claimed:
            return "holds" if self.difference > 0 else "contradicted"
        return "better" if self.difference > 0 else "worse"


def compare(results: Sequence[CellResult]) -> list[Compared]:
    """All pairs of the paper's variants, then its best one and each of ours, for each task and K."""
    found: list[Compared] = []
    for task in dict.fromkeys(result.cell.task.name for result in results):
        of_task = [result for result in results if result.cell.task.name == task]
        for chunk in of_task[0].cell.settings.chunks:
            found += _of_chunk([each for each in of_task if each.belongs_to(chunk)], chunk)
    return found


def interval_of_difference(less: tuple[int, int], more: tuple[int, int]) -> tuple[float, float, float]:
    """Difference of two rates and its 95 % interval (Newcombe 1998, hybrid score, without correction).

    Args:
        less: Successes and episodes.
        more: The same.

    Returns:
        Difference, lower and upper end, as shares.
    """
    (first, second), (low_1, high_1), (low_2, high_2) = (
        (less[0] / less[1], more[0] / more[1]),
        wilson(*less),
        wilson(*more),
    )
    difference = second - first
    return (
        difference,
        difference - hypot(second - low_2, high_1 - first),
        difference + hypot(high_2 - second, first - low_1),
    )


def _of_chunk(results: Sequence[CellResult], chunk: int) -> list[Compared]:
    claimed = sorted(
        (each for each in results if each.cell.variant.paper is not None),
        key=lambda each: each.cell.variant.paper or 0.0,
    )
    ours = [each for each in results if each.cell.variant.paper is None]
    pairs = [(*pair, True) for pair in combinations(claimed, 2)]
    pairs += [(best, each, False) for best in claimed[-1:] for each in ours]
    return [_compare(less, more, chunk, of_paper) for less, more, of_paper in pairs]


def _compare(less: CellResult, more: CellResult, chunk: int, claimed: bool) -> Compared:
    names = less.cell.task.name, chunk, less.cell.variant.name, more.cell.variant.name, claimed
    first, second = _counts(less.row), _counts(more.row)
    if first is None or second is None:
        return Compared(*names)
    return Compared(*names, *(100 * each for each in interval_of_difference(first, second)))


def _counts(row: dict[str, Any]) -> tuple[int, int] | None:
    return (row["successes"], row["episodes"]) if row["episodes"] else None
