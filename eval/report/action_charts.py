"""Small charts of actions: each number of the policy's over an episode beside the expert's, and the entropy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eval.report.action_data import Curves, Floats
from eval.report.charts import Chart, Series, format_number, line_chart
from eval.simulator.interface import EMBODIMENT

POLICY_TONE, EXPERT_TONE, ENTROPY_TONE = 1, 2, 4
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
        texts += [] if errors is None else [f"mean error {format_number(errors[number])}"]
        unit = ", ".join(text for text in texts if text)
        charts.append(line_chart(name, unit, _series(curves, number), small=True, where=where))
    if curves.entropy is not None:
        entropy = Series("entropy", _points(curves.entropy), ENTROPY_TONE)
        charts.append(line_chart("entropy", "nats a token", [entropy], small=True, where=where))
    return [chart for chart in charts if chart is not None]


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
