"""Charts of the report: finite data within its range, labels that do not overlap, short numbers, safe SVG."""

from __future__ import annotations

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from eval.report.charts import Chart, Mark, Point, Series, format_number, line_chart, thin
from eval.report.drawing import draw, label_rows, to_svg

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "</text><script>alert(1)</script> $\\frac{ \"'><img onerror=x> \\1"


def make_chart(*series: Series, marks: tuple[Mark, ...] = (), y_range: Point | None = None) -> Chart:
    chart = line_chart("Loss", "nats", series, marks=marks, y_range=y_range)
    assert chart is not None
    return chart


def parsed(chart: Chart) -> ElementTree.Element:
    namespaces = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
    return ElementTree.fromstring(str(to_svg(chart)).replace("<svg ", namespaces, 1))


def texts(chart: Chart) -> list[str]:
    return [element.text or "" for element in parsed(chart).iter(f"{SVG}text")]


def test_chart_draws_the_finite_points_of_every_series_within_its_axes() -> None:
    chart = make_chart(
        Series("a", [(0, 1.0), (50, 3.0), (100, float("nan"))], tone=2),
        Series("b", [(50, 2.0), (100, 2.5)], dots=True),
        Series("empty", []),
        marks=(Mark(25, "resumed"), Mark(101, "after the end")),
    )
    assert [series.label for series in chart.series] == ["a", "b"]
    assert [series.last for series in chart.series] == ["3", "2.5"]
    assert chart.marks == (Mark(25, "resumed"),)
    axes = draw(chart).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    np.testing.assert_array_equal(lines["a"].get_xydata(), [(0, 1), (50, 3)])
    np.testing.assert_array_equal(lines["b"].get_xydata(), [(50, 2), (100, 2.5)])
    assert (lines["a"].get_marker(), lines["b"].get_marker()) == ("None", "o")
    assert axes.get_xlim() == (0, 100)
    assert axes.get_ylim() == (0, 3)


def test_drawing_uses_the_colours_of_the_page_and_no_fixed_font() -> None:
    svg = to_svg(make_chart(Series("a", [(0, 1.0), (1, 2.0)], tone=2), marks=(Mark(1, "resumed"),)))
    assert set(re.findall(r"var\(--(\w+)\)", svg)) == {"tone2", "tone4", "soft", "rule"}
    assert "#0000" not in svg
    assert "font-family" not in svg
    assert "DejaVu" not in svg
    assert "width=" not in svg.split(">", 1)[0], "its size is that of the page's column"


def test_error_bars_reach_the_ends_of_the_intervals() -> None:
    intervals = [(10.0, 60.0), (40.0, 95.0)]
    chart = make_chart(
        Series("rate", [(1, 30.0), (2, 70.0), (3, float("inf"))], dots=True, intervals=[*intervals, (0, 1)]),
        y_range=(0.0, 100.0),
    )
    assert list(chart.series[0].intervals) == intervals
    axes = draw(chart).axes[0]
    (bars,) = axes.collections
    ends = [(path.vertices[0, 1], path.vertices[-1, 1]) for path in bars.get_paths()]  # type: ignore[index]
    assert ends == intervals
    assert axes.get_ylim() == (0, 100)
    caps = [np.asarray(line.get_ydata()) for line in axes.lines if line.get_marker() == "_"]
    np.testing.assert_array_equal(np.stack(caps, axis=1), intervals)


def test_labels_of_marks_do_not_overlap_and_every_mark_has_its_line() -> None:
    marks = tuple(
        Mark(float(step), f"resumed, TP 1 x DP {step}, ZeRO-3") for step in (3, 20, 21, 22, 23, 24, 80, 90)
    )
    chart = make_chart(Series("a", [(0, 1.0), (100, 2.0)]), marks=marks)
    figure = draw(chart)
    axes = figure.axes[0]
    lines = [line for line in axes.lines if line.get_label() != "a"]
    assert [line.get_xdata()[0] for line in lines] == [mark.x for mark in marks]  # type: ignore[index]
    shown = [text for text in axes.texts if text.get_text()]
    assert [text.get_text() for text in shown][:3] == [mark.label for mark in marks[:3]]
    assert len(shown) < len(marks), "some labels have no room"
    plot = axes.get_window_extent()
    extents = [text.get_window_extent() for text in shown]
    for extent in extents:
        assert extent.y0 >= plot.y1, "labels are above the plot"
        assert 0 <= extent.x0 < extent.x1 <= 480
        assert extent.y1 <= figure.bbox.y1
    assert not any(one.overlaps(other) for one, other in itertools.combinations(extents, 2))
    for line in lines:
        drawn = line.get_window_extent()
        crossed = [extent for extent in extents if extent.x0 < drawn.x0 < extent.x1 and drawn.y1 > extent.y0]
        assert crossed == []


def test_a_single_label_takes_a_single_row_and_no_label_takes_none() -> None:
    series = Series("a", [(0, 1.0), (100, 2.0)])
    heights = [
        draw(make_chart(series, marks=marks)).bbox.height
        for marks in ((), (Mark(9, "resumed"),), (Mark(9, "a"), Mark(50, "b")), (Mark(9, "x" * 200),))
    ]
    assert heights[0] == heights[3] < heights[1] == heights[2]


def test_rows_are_used_from_the_top_and_labels_without_room_get_none() -> None:
    assert label_rows([(10, 15, 60), (20, 25, 70), (30, 35, 80), (40, 45, 90)], 3, (0, 100)) == [
        0,
        1,
        2,
        None,
    ]
    assert label_rows([(90, 40, 85), (80, 30, 75)], 3, (0, 100)) == [0, 1]
    assert label_rows([(10, 15, 40), (60, 65, 90)], 3, (0, 100)) == [0, 0]
    assert label_rows([(10, 15, 101), (90, -1, 85)], 3, (0, 100)) == [None, None]
    assert label_rows([], 3, (0, 100)) == []


def test_no_mark_crosses_a_label_on_its_way_up() -> None:
    assert label_rows([(10, 15, 60), (20, 25, 95), (62, 67, 90)], 3, (0, 100)) == [0, 1, 2], "not in row 0"
    assert label_rows([(10, 15, 40), (60, 5, 55)], 3, (0, 100)) == [0, None], "across the mark at 10"


def test_chart_of_nothing_is_none() -> None:
    assert line_chart("Loss", "", [Series("a", []), Series("b", [(0.0, float("inf"))])]) is None


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-3, 17), (1e-6, 2e-6), (5, 5), (0, 0), (1e9, 3e9), (97, 99)]
)
def test_axis_covers_the_range_with_round_ticks(low: float, high: float) -> None:
    axes = draw(make_chart(Series("a", [(1, low), (2, high)]))).axes[0]
    ticks = axes.get_yticks()
    assert axes.get_ylim() == (ticks[0], ticks[-1])
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12
    step = float(np.diff(ticks).mean())
    np.testing.assert_allclose(np.diff(ticks), step, rtol=1e-6)
    assert f"{step:.1e}"[:3] in ("1.0", "2.0", "5.0")


def test_axis_starts_at_zero_where_the_values_are_near_it() -> None:
    assert draw(make_chart(Series("a", [(1, 1.0), (2, 3.0)]))).axes[0].get_ylim()[0] == 0
    assert draw(make_chart(Series("a", [(1, 97.0), (2, 99.0)]))).axes[0].get_ylim()[0] > 0


def test_tick_labels_are_short_numbers_in_the_svg() -> None:
    shown = texts(make_chart(Series("a", [(0, 0.0), (20_000, 4e6)])))
    assert {"0", "5000", "10k", "20k", "1M", "4M", "step"} <= set(shown)


def test_text_is_escaped_and_never_read_as_a_formula() -> None:
    series = Series(HOSTILE, [(0, 1.0), (1, 2.0)])
    chart = line_chart(HOSTILE, HOSTILE, [series], marks=[Mark(0.1, HOSTILE[:24]), Mark(0.9, "$x^2$")])
    assert chart is not None
    root = parsed(chart)
    assert root.get("aria-label") == HOSTILE
    assert {HOSTILE[:24], "$x^2$"} <= {element.text for element in root.iter(f"{SVG}text")}
    assert {element.tag for element in root.iter()} <= {f"{SVG}{t}" for t in ("svg", "g", "path", "text")}
    attributes = [name for element in root.iter() for name in element.attrib]
    assert not any(name.startswith("on") for name in attributes)


def test_equal_charts_give_equal_svg_without_metadata() -> None:
    def chart() -> Chart:
        return make_chart(Series("a", [(0, 1.0), (1, 2.0)], dots=True), marks=(Mark(1, "resumed"),))

    svg = to_svg(chart())
    assert to_svg(chart()) == svg
    assert "metadata" not in svg
    assert "<style" not in svg
    assert "<!--" not in svg


def test_dense_curve_is_drawn_with_few_points() -> None:
    chart = make_chart(Series("a", [(float(i), float(i % 7)) for i in range(10_000)]))
    (line,) = draw(chart).axes[0].lines
    assert np.asarray(line.get_xydata()).shape[0] <= 240
    assert len(to_svg(chart)) < 10_000


def test_thinned_curve_has_the_same_mean() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert np.mean(thinned, axis=0) == pytest.approx(np.mean(points, axis=0))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (2e-5, "2e-05"),
        (1500, "1500"),
        (12_000, "12k"),
        (3.14e6, "3.14M"),
        (-2, "-2"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text
