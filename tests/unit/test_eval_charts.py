"""Charts of the report: points inside the frame, round ticks, short numbers."""

from __future__ import annotations

import numpy as np
import pytest

from eval.charts import Mark, Series, format_number, line_chart, nice_ticks, thin


def test_chart_places_points_inside_its_frame() -> None:
    chart = line_chart(
        "Loss", "nats", [Series("a", [(0, 1.0), (50, 3.0), (100, float("nan"))])], marks=[Mark(25, "resumed")]
    )
    assert chart is not None
    xs, ys = zip(*(map(float, p.split()) for p in chart.lines[0].path[1:].split("L")), strict=True)
    assert (min(xs), max(xs)) == (chart.left, chart.right)
    assert chart.top <= min(ys) < max(ys) <= chart.bottom
    assert ys[0] > ys[1]  # larger values are higher up
    assert chart.marks[0].position == pytest.approx((chart.left + chart.right) / 2)
    assert chart.lines[0].last == "3"


def test_chart_of_nothing_is_none() -> None:
    assert line_chart("Loss", "", [Series("a", []), Series("b", [(0.0, float("inf"))])]) is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 17), (1e-6, 2e-6), (5, 5), (0, 0), (1e9, 3e9)])
def test_ticks_are_round_and_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12


def test_thinned_curve_keeps_its_mean() -> None:
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
