"""Charts of the report: points inside the frame, round ticks, short numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from eval.report.charts import Mark, Series, format_number, line_chart, nice_ticks, thin


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


def test_labels_of_marks_lie_on_no_other_and_all_marks_keep_their_line() -> None:
    marks = [
        Mark(float(step), f"resumed, TP 1 x DP {step}, ZeRO-3") for step in (3, 20, 21, 22, 23, 24, 80, 90)
    ]
    chart = line_chart("Loss", "nats", [Series("a", [(0, 1.0), (100, 2.0)])], marks=marks)
    assert chart is not None
    assert len({note.position for note in chart.marks}) == len(marks)
    shown = [note for note in chart.marks if note.label]
    assert [note.label for note in shown[:3]] == [mark.label for mark in marks[:3]]
    assert all(note.text_y <= chart.top + 33 for note in shown), "labels keep to the top of the plot"
    assert [note.label for note in chart.marks[3:6]] == [""] * 3, "there is no room for these"
    for row in {note.text_y for note in shown}:
        spans = []
        for note in shown:
            width = 6 * len(note.label) * (-1 if note.anchor == "end" else 1)
            if note.text_y == row:
                spans.append(sorted((note.text_x, note.text_x + width)))
        spans.sort()
        assert all(left[1] <= right[0] for left, right in itertools.pairwise(spans))


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
