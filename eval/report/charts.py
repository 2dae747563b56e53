"""Line charts as plain geometry: the report's template draws them as inline SVG.

All coordinates are in the SVG's user units (pixels at scale 1), the origin at the top left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 480.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 16.0, 14.0, 34.0
_NOTE_ROWS, _NOTE_GAP, _NOTE_LETTER = 3, 6.0, 6.2  # of labels: rows, distance to the line, letter's width
_MOST_POINTS = 240  # of a line: more cannot be told apart at this width

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line to draw.

    Attributes:
        label: Name in the legend.
        points: (x, y), ascending in x; points that are not finite are left out.
        tone: Colour number, 1 to 5.
        dots: Mark every point (few, measured one by one) instead of thinning a dense curve.
        intervals: For each point of `points`, the lower and upper end of its error bar.
    """

    label: str
    points: Sequence[Point]
    tone: int = 1
    dots: bool = False
    intervals: Sequence[Point] = ()


@dataclass(frozen=True)
class Mark:
    """A vertical line at `x` with a label: something happened here."""

    x: float
    label: str


@dataclass(frozen=True)
class Note:
    """A drawn mark: the line's x, and its label at `text_x`, `text_y`, on the side where there is room.

    The label is empty where it would lie on others: the line stays, the report tells the event in words.
    """

    position: float
    label: str
    text_x: float
    text_y: float
    anchor: str


@dataclass(frozen=True)
class Tick:
    """A grid line at `position` (x or y coordinate) and its label."""

    position: float
    label: str


@dataclass(frozen=True)
class Line:
    """A drawn series: the SVG path, dots (x, y), error bars (x, y low, y high), the last value as text."""

    label: str
    tone: int
    path: str
    dots: tuple[Point, ...]
    bars: tuple[tuple[float, float, float], ...]
    last: str


@dataclass(frozen=True)
class Chart:
    """A chart ready to draw: see `eval/report/templates/chart.html.j2`."""

    title: str
    unit: str
    x_unit: str
    lines: tuple[Line, ...]
    marks: tuple[Note, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def line_chart(
    title: str,
    unit: str,
    series: Sequence[Series],
    x_unit: str = "step",
    marks: Sequence[Mark] = (),
    y_range: Point | None = None,
) -> Chart | None:
    """Lay out `series` over a common x axis; None when there is nothing to draw.

    Args:
        title: What is shown.
        unit: Unit of y; empty when it is a pure number.
        series: The lines.
        x_unit: Unit of x.
        marks: Vertical marks; those outside the data are left out.
        y_range: Fixed range of y; None takes the data's, from zero where it is near.
    """
    finite = [_finite(s) for s in series]
    points = [point for s in finite for point in s.points]
    if not points:
        return None
    x_low, x_high = _from_zero(min(x for x, _ in points), max(x for x, _ in points), near=0.1)
    extent = [y for _, y in points] + [end for s in finite for pair in s.intervals for end in pair]
    y_ticks = nice_ticks(*(y_range or _from_zero(min(extent), max(extent))))
    y_low, y_high = y_range or (y_ticks[0], y_ticks[-1])

    def to_x(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT)

    def to_y(y: float) -> float:
        return HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM)

    lines: list[Line] = []
    for s in finite:
        if not s.points:
            continue
        kept = s.points if s.dots else thin(s.points, _MOST_POINTS)
        drawn = [(to_x(x), to_y(y)) for x, y in kept]
        bars = [(x, to_y(low), to_y(high)) for (x, _), (low, high) in zip(drawn, s.intervals, strict=False)]
        path = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in drawn)
        last = format_number(s.points[-1][1])
        lines.append(Line(s.label, s.tone, path, tuple(drawn) if s.dots else (), tuple(bars), last))
    x_ticks = [x for x in nice_ticks(x_low, x_high) if x_low <= x <= x_high]
    return Chart(
        title=title,
        unit=unit,
        x_unit=x_unit,
        lines=tuple(lines),
        marks=_notes([(to_x(m.x), m.label) for m in marks if x_low <= m.x <= x_high]),
        x_ticks=tuple(Tick(to_x(x), format_number(x)) for x in x_ticks),
        y_ticks=tuple(Tick(to_y(y), format_number(y)) for y in y_ticks if y_low <= y <= y_high),
    )


def _notes(marks: Sequence[tuple[float, str]]) -> tuple[Note, ...]:
    """Give each label the first row at the top in which it lies on no other label, if one of the rows has."""
    taken: list[list[Point]] = [[] for _ in range(_NOTE_ROWS)]
    notes: list[Note] = []
    for x, label in marks:
        to_the_left = x > (_LEFT + WIDTH - _RIGHT) / 2
        near, far = (x - _NOTE_GAP, x - _NOTE_GAP - _NOTE_LETTER * len(label))
        if not to_the_left:
            near, far = (x + _NOTE_GAP, x + _NOTE_GAP + _NOTE_LETTER * len(label))
        begin, end = min(near, far), max(near, far)
        free = [row for row, spans in enumerate(taken) if all(end < b or begin > e for b, e in spans)]
        if free:
            taken[free[0]].append((begin, end))
        y = _TOP + 9 + 12 * (free[0] if free else 0)
        notes.append(Note(x, label if free else "", near, y, "end" if to_the_left else "start"))
    return tuple(notes)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: neighbours are averaged in equal groups."""
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from at or below `low` to at or above `high`."""
    low, high = _padded(low, high)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


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
    kept = [i for i, (x, y) in enumerate(series.points) if math.isfinite(x) and math.isfinite(y)]
    intervals = [series.intervals[i] for i in kept] if series.intervals else ()
    return Series(series.label, [series.points[i] for i in kept], series.tone, series.dots, intervals)


def _padded(low: float, high: float) -> Point:
    """The range itself, widened where it is a single value."""
    if high > low:
        return low, high
    margin = abs(low) * 0.5 or 1.0
    return low - margin, high + margin


def _from_zero(low: float, high: float, near: float = 0.6) -> Point:
    """Begin at zero where the values start near it, or are all the same."""
    return (0.0, high) if 0 < low < near * high or 0 < low == high else _padded(low, high)
