"""Charts as inline SVG, drawn by matplotlib.

Colours are variables of the page's style sheet, so that a chart follows its light or dark theme, and text
remains text in the page's font. Title and legend of a chart are HTML (`templates/chart.html.j2`). Lengths are
pixels of the SVG at scale 1.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, MaxNLocator

from eval.report.charts import Chart, Mark, Series, format_number, range_from_zero, thin

# matplotlib draws with these colours; in the SVG they become variables of the style sheet.
_TONES = {tone: f"#00000{tone}" for tone in range(1, 7)}
_RULE, _SOFT, _CARD = "#000007", "#000008", "#000009"
_VARIABLES = {colour: f"tone{tone}" for tone, colour in _TONES.items()} | {
    _RULE: "rule",
    _SOFT: "soft",
    _CARD: "card",
}
_MARK_COLOUR = _TONES[4]
_DPI = 72  # a pixel of the SVG is a point


class _Size(NamedTuple):
    """Width of a chart, height of its plot, margins, and the number of ticks on an axis."""

    width: int
    plot_height: int
    left: int
    right: int
    top: int
    bottom: int
    ticks: int


_LARGE = _Size(480, 202, 52, 16, 14, 34, 5)
_SMALL = _Size(260, 84, 40, 10, 8, 30, 3)
_LABEL_ROWS, _LABEL_HEIGHT, _LABEL_GAP = 3, 13, 5  # labels of marks, in rows above the plot
_MAX_POINTS = 240  # of a line: more cannot be distinguished at this width
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "lines.solid_capstyle": "butt",
}


def draw(chart: Chart) -> Figure:
    """Draw a chart: for each series a line with its label, marks with their labels above the plot."""
    with context(("default", _STYLE)):  # not the user's matplotlibrc
        figure = Figure(dpi=_DPI)
        figure.patch.set_visible(False)
        axes = figure.add_axes((0, 0, 1, 1))
        for series in chart.series:
            _draw_series(axes, series)
        size = _SMALL if chart.small else _LARGE
        _style_axes(axes, chart, size)
        _place_axes(figure, axes, size, num_rows=0)
        _place_axes(figure, axes, size, _draw_marks(axes, chart.marks, size))
    return figure


def to_svg(chart: Chart) -> Markup:
    """The chart as an inline `<svg>` element; equal charts give equal bytes."""
    salt = f"{chart.title} {chart.unit} {chart.where}"  # ids are unique within the page
    with context(("default", {**_STYLE, "svg.hashsalt": salt})):
        buffer = io.StringIO()
        draw(chart).savefig(buffer, format="svg", metadata={"Date": None})
    return Markup(_compact(buffer.getvalue(), chart.title))  # matplotlib has escaped all text


def label_rows(
    labels: Sequence[tuple[float, float, float]], num_rows: int, extent: tuple[float, float]
) -> list[int | None]:
    """Rows for the labels of vertical marks, so that no label overlaps another or is crossed by a mark.

    The line of a mark ends at the row of its label; row 0 is the top one.

    Args:
        labels: (x of the mark, left end, right end of its label).
        num_rows: Number of rows.
        extent: Left and right end of the rows.

    Returns:
        The row of each label; None where it fits into none.
    """
    rows: list[int | None] = [None] * len(labels)
    rightward = [i for i, (x, left, _) in enumerate(labels) if left >= x]
    leftward = [i for i, (x, left, _) in enumerate(labels) if left < x]
    # Labels that extend over the marks to their right (or left) are placed first, above the labels of those.
    for i in [*sorted(rightward, key=lambda i: labels[i][0]), *sorted(leftward, key=lambda i: -labels[i][0])]:
        if extent[0] <= labels[i][1] and labels[i][2] <= extent[1]:
            placed = [(row, *labels[k]) for k, row in enumerate(rows) if row is not None]
            rows[i] = next((row for row in range(num_rows) if _fits(labels[i], row, placed)), None)
    return rows


def _fits(
    label: tuple[float, float, float], row: int, placed: Sequence[tuple[int, float, float, float]]
) -> bool:
    """Whether a label in a row and the line of its mark are clear of the placed labels and their lines."""
    x, left, right = label
    for other_row, other_x, other_left, other_right in placed:
        overlaps = other_row == row and left < other_right and other_left < right
        crosses = other_row > row and other_left <= x <= other_right
        is_crossed = other_row < row and left <= other_x <= right
        if overlaps or crosses or is_crossed:
            return False
    return True


def _draw_series(axes: Axes, series: Series) -> None:
    points = series.points if series.dots else thin(series.points, _MAX_POINTS)
    x, y = zip(*points, strict=True)
    colour = _TONES[series.tone]
    style: dict[str, Any] = {"color": colour, "clip_on": False}
    if series.intervals:
        low, high = zip(*series.intervals, strict=True)
        axes.vlines(x, low, high, colors=colour, linewidth=1.25, alpha=0.6, clip_on=False)
        for ends in (low, high):
            axes.plot(x, ends, "_", markersize=8, markeredgewidth=1.25, alpha=0.6, **style)
    dots = {"marker": "o", "markersize": 7, "markeredgecolor": _CARD, "markeredgewidth": 1.5}
    axes.plot(x, y, linewidth=1.75, label=series.label, **style, **(dots if series.dots else {}))


def _style_axes(axes: Axes, chart: Chart, size: _Size) -> None:
    locators = [MaxNLocator(size.ticks, steps=[1, 2, 5, 10], min_n_ticks=2) for _ in range(2)]
    for axis, locator in zip((axes.xaxis, axes.yaxis), locators, strict=True):
        axis.set_major_locator(locator)
        axis.set_major_formatter(FuncFormatter(lambda value, _: format_number(value)))
    low, high = range_from_zero(*axes.dataLim.intervaly)
    ticks = locators[1].tick_values(low, high)
    axes.set_ylim(*(chart.y_range or (ticks[0], ticks[-1])))
    axes.set_xlim(*chart.x_range)
    axes.set_frame_on(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=_RULE, linewidth=1, clip_on=False)
    axes.tick_params(bottom=False, left=False, labelcolor=_SOFT, pad=8)
    axes.set_xlabel(chart.x_unit, loc="right", color=_SOFT, labelpad=1)


def _place_axes(figure: Figure, axes: Axes, size: _Size, num_rows: int) -> None:
    """Set the size of the figure and the place of the plot below so many rows of labels."""
    width, plot_height = size.width, size.plot_height
    height = size.top + num_rows * _LABEL_HEIGHT + plot_height + size.bottom
    figure.set_size_inches(width / _DPI, height / _DPI)
    plot_width = width - size.left - size.right
    axes.set_position((size.left / width, size.bottom / height, plot_width / width, plot_height / height))


def _draw_marks(axes: Axes, marks: Sequence[Mark], size: _Size) -> int:
    """Draw the marks, each up to its label above the plot; return the number of rows of labels.

    A label without room is left out: the report lists every event in words.
    """
    texts = [_draw_label(axes, mark) for mark in marks]
    extents = [text.get_window_extent() for text in texts]
    positions = [float(axes.transData.transform((mark.x, 0))[0]) for mark in marks]
    labels = [(x, extent.x0, extent.x1) for x, extent in zip(positions, extents, strict=True)]
    rows = label_rows(labels, _LABEL_ROWS, (0, size.width))
    num_rows = 1 + max((row for row in rows if row is not None), default=-1)
    for mark, text, row in zip(marks, texts, rows, strict=True):
        lines_up = 0 if row is None else num_rows - row
        top = 1 + lines_up * _LABEL_HEIGHT / size.plot_height
        axes.plot(
            [mark.x, mark.x],
            [0, top],
            transform=axes.get_xaxis_transform(),
            color=_MARK_COLOUR,
            linewidth=1,
            linestyle=(0, (3, 3)),
            clip_on=False,
        )
        if row is None:
            text.remove()
        else:
            text.set_position((text.get_position()[0], (lines_up - 1) * _LABEL_HEIGHT + 5))
    return num_rows


def _draw_label(axes: Axes, mark: Mark) -> Annotation:
    """Write the label of a mark beside the top of its line, on the side with more room."""
    leftward = mark.x > sum(axes.get_xlim()) / 2
    return axes.annotate(
        mark.label,
        (mark.x, 1),
        (-_LABEL_GAP if leftward else _LABEL_GAP, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right" if leftward else "left",
        color=_MARK_COLOUR,
        weight="bold",
        annotation_clip=False,
    )


def _compact(svg: str, title: str) -> str:
    """Reduce matplotlib's file to an element for an HTML page, with the style sheet's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</defs>", "", svg, flags=re.DOTALL)
    size = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg {size[0] if size else ""} role="img" aria-label="{escape(title)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    used = set(re.findall(r"#([\w.]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r"font: (\w+) (\w+) [^;\"]*", r"font-weight: \1; font-size: \2", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r' (d|x|y)="[^"]*"', lambda match: _short_numbers(match[0]), svg)
    return re.sub(r">\s+<", "><", svg).strip()


def _short_numbers(attribute: str) -> str:
    """An attribute's numbers with one decimal."""
    shorter = re.sub(r"-?\d+\.\d+", lambda number: f"{float(number[0]):.1f}", attribute)
    return re.sub(r"\s+", " ", shorter).replace(' "', '"')
