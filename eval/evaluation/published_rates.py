"""Published success rates on LIBERO and LIBERO-Plus, for comparison.

LIBERO: WorldVLA (arXiv 2506.21539) and RynnVLA-002 (arXiv 2511.17502), 10 tasks x 50 initial states a suite.
LIBERO-Plus (arXiv 2510.13626, and the table of its authors' repository): every perturbed task once.
"""

from __future__ import annotations

from collections.abc import Mapping

PUBLISHED_TASKS = 10
PUBLISHED_STATES = 50  # of each task
PLUS_STATES = 1  # of each task of LIBERO-Plus
_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
_RATES: Mapping[str, tuple[float, float, float, float]] = {
    "WorldVLA 256 px": (85.6, 89.0, 82.6, 59.0),
    "WorldVLA 512 px": (87.6, 96.2, 83.4, 60.0),
    "WorldVLA, chunk + action mask, no world data": (81.8, 90.9, 84.4, 49.3),
    "WorldVLA, chunk, no action mask, no world data": (36.7, 82.9, 79.6, 16.9),
    "RynnVLA-002 discrete": (94.2, 96.8, 94.6, 87.6),
    "RynnVLA-002 continuous": (99.0, 99.8, 96.4, 94.4),
}
_PLUS = "libero_plus"
# By kind of perturbation, over all suites of LIBERO together; None: over all kinds.
_PLUS_RATES: Mapping[str | None, Mapping[str, float]] = {
    "camera": {"WorldVLA": 0.1},
    "robot": {"WorldVLA": 27.9},
    "language": {"WorldVLA": 41.6},
    "light": {"WorldVLA": 43.7},
    "background": {"WorldVLA": 17.1},
    "noise": {"WorldVLA": 10.9},
    "layout": {"WorldVLA": 38.0},
    None: {"WorldVLA": 25.0, "pi0.5": 85.5, "best published, model not recorded here": 86.9},
}

INCOMPLETE = {
    _PLUS: "without the categories light and background, and without added objects",
    f"{_PLUS}_layout": "without the tasks with added objects",
}
"""Suites that lack a part of what the published rates are over, for want of assets."""


def published_rates(suite: str) -> dict[str, float]:
    """Model -> published success rate on a suite, 0 to 1; empty for a suite without any."""
    if is_plus(suite):
        return published_plus_rates(suite.removeprefix(_PLUS).removeprefix("_") or None)
    if suite not in _SUITES:
        return {}
    column = _SUITES.index(suite)
    return {model: _rate(rates[column]) for model, rates in _RATES.items()}


def published_plus_rates(category: str | None) -> dict[str, float]:
    """Model -> published success rate on LIBERO-Plus, 0 to 1.

    Args:
        category: Kind of perturbation (`camera`, `noise`, ...); None: all of them. Empty for a kind without
            known rates.
    """
    return {model: _rate(rate) for model, rate in _PLUS_RATES.get(category, {}).items()}


def is_plus(suite: str) -> bool:
    """Whether a suite is one of LIBERO-Plus'."""
    return suite.startswith(_PLUS)


def _rate(percent: float) -> float:
    return round(percent / 100, 4)
