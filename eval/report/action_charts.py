"""Small charts of actions: each number of the policy's beside the expert's over an episode, the entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eval.report.action_data import Curves, Floats
from eval.report.charts import Chart, Point, Series, format_number, line_chart
from eval.simulator.interface import EMBODIMENT

POLICY_TONE, EXPERT_TONE, ENTROPY_TONE = 1, 2, 4
_LEAST_COMMAND = 0.1  # half of the smallest range of y: less is no motion
_MOVE, _TURN, _GRIP = "1 = 5 cm", "1 = 0.5 rad", "-1 open, 1 closed"
_UNITS = dict(zip(EMBODIMENT.action, (_MOVE,) * 3 + (_TURN,) * 3 + (_GRIP,), strict=True))


def action_charts(curves: Curves, where: str, errors: Sequence[float] | None = None) -> list[Chart]:
    """One small chart for each number of an action, and one of the entropy where there is one.

    Args:
        curves: Of an episode.
        where: Which episode, for the charts' ids on the page.
        errors: Mean absolute error of each number, in its units, to be said beside its name; None: not said.
    """
    units = _UNITS if curves.names == EMBODIMENT.action else {}
    charts = []
    for number, name in enumerate(curves.names):
        texts = [units.get(name, "")]
        texts += [] if errors is None else [f"error {format_number(errors[number])}"]
        unit, series = ", ".join(text for text in texts if text), _series(curves, number)
        y_range = _command_range(series) if units else None
        charts.append(line_chart(name, unit, series, y_range=y_range, small=True, where=where))
    if curves.entropy is not None:
        entropy = Series("entropy", _points(curves.entropy), ENTROPY_TONE)
        y_range = (0.0, max(1.0, 1.05 * float(np.nanmax(curves.entropy, initial=0.0))))
        charts.append(
            line_chart("entropy", "nats a token", [entropy], y_range=y_range, small=True, where=where)
        )
    return [chart for chart in charts if chart is not None]


def _command_range(series: Sequence[Series]) -> Point | None:
    """Range of y, of some width even where nothing is commanded; None without a finite value."""
    values = [y for each in series for _, y in each.points if math.isfinite(y)]
    if not values:
        return None
    middle, half = (min(values) + max(values)) / 2, (max(values) - min(values)) / 2
    half = max(1.05 * half, _LEAST_COMMAND)
    return middle - half, middle + half


def _series(curves: Curves, number: int) -> Sequence[Series]:
    """The expert's curve below the policy's."""
    series = [Series("policy", _points(curves.policy[:, number]), POLICY_TONE)]
    if curves.expert is not None:
        series.insert(0, Series("expert", _points(curves.expert[:, number]), EXPERT_TONE))
    return series


def _points(values: Floats) -> list[tuple[float, float]]:
    return [(float(step), float(value)) for step, value in enumerate(values)]


def parts_most_at(curves: Curves) -> int | None:
    """The step at which policy and expert part most: largest mean difference; None without an expert."""
    if curves.expert is None:
        return None
    distance = np.abs(curves.policy - curves.expert).mean(axis=1)
    return None if np.isnan(distance).all() else int(np.nanargmax(distance))
