"""Line charts of the report as plain data; `eval.report.drawing` draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: Name in the legend.
        points: (x, y), ascending in x.
        tone: Colour number, 1 to 6.
        dots: Mark every point (few, measured one by one) instead of averaging a dense curve.
        intervals: For each point of `points`, the lower and upper end of its error bar.
    """

    label: str
    points: Sequence[Point]
    tone: int = 1
    dots: bool = False
    intervals: Sequence[Point] = ()

    @property
    def last(self) -> str:
        """The last value as short text."""
        return format_number(self.points[-1][1])


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` with a label: an event of the run."""

    x: float
    label: str


@dataclass(frozen=True)
class Chart:
    """A chart of finite points.

    Attributes:
        title: What is shown.
        unit: Unit of y; empty for a pure number.
        series: The lines, each with at least one point; all values are finite.
        x_unit: Unit of x.
        marks: Vertical lines within the range of x.
        x_range: Range of x.
        y_range: Range of y; None: the data's, from zero where it is near, extended to whole ticks.
        small: Draw it small, one of many beside one another.
        where: What it belongs to, of charts with equal titles.
    """

    title: str
    unit: str
    series: tuple[Series, ...]
    x_unit: str
    marks: tuple[Mark, ...]
    x_range: Point
    y_range: Point | None
    small: bool = False
    where: str = ""


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    x_unit: str = "step",
    marks: Sequence[Mark] = (),
    y_range: Point | None = None,
    small: bool = False,
    where: str = "",
) -> Chart | None:
    """Make a chart of `series` over a common x axis; None if no series has a finite point.

    Args:
        title: What is shown.
        unit: Unit of y; empty for a pure number.
        series: The lines; points that are not finite are dropped.
        x_unit: Unit of x.
        marks: Vertical lines; those outside the data are dropped.
        y_range: Fixed range of y; None: derived from the data.
        small: Draw it small, one of many beside one another.
        where: What it belongs to, of charts with equal titles.
    """
    finite = tuple(s for s in map(_finite, series) if s.points)
    if not finite:
        return None
    xs = [x for s in finite for x, _ in s.points]
    low, high = range_from_zero(min(xs), max(xs), near=0.1)
    within = tuple(mark for mark in marks if low <= mark.x <= high)
    return Chart(title, unit, finite, x_unit, within, (low, high), y_range, small, where)


def thin(points: Sequence[Point], max_points: int) -> list[Point]:
    """At most `max_points` points: neighbours are averaged in groups of equal size."""
    size = math.ceil(len(points) / max_points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def range_from_zero(low: float, high: float, near: float = 0.6) -> Point:
    """A range of at least some width, from zero where the values are near zero or all the same."""
    if 0 < low < near * high or 0 < low == high:
        return 0.0, high
    if high > low:
        return low, high
    margin = abs(low) * 0.5 or 1.0
    return low - margin, high + margin


def format_number(value: float) -> str:
    """Short text of a number, as on an axis: 0.25, 12k, 3.1M, 2e-05."""
    size = abs(value)
    if size < 1e-15:
        return "0"
    if size < 1e-3:
        return f"{value:.2g}"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            divisor = 1e3 if suffix == "k" else limit
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:.4g}" if size >= 1000 else f"{value:.3g}"


def _finite(series: Series) -> Series:
    """The series without points that are not finite."""
    finite = [i for i, point in enumerate(series.points) if all(map(math.isfinite, point))]
    intervals = [series.intervals[i] for i in finite] if series.intervals else ()
    return replace(series, points=[series.points[i] for i in finite], intervals=intervals)
