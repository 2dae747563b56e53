"""Published success rates on LIBERO, for comparison.

WorldVLA (arXiv 2506.21539) and RynnVLA-002 (arXiv 2511.17502): 10 tasks x 50 initial states a suite.
"""

from __future__ import annotations

from collections.abc import Mapping

PUBLISHED_TASKS = 10
PUBLISHED_STATES = 50  # of each task
_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
_RATES: Mapping[str, tuple[float, float, float, float]] = {
    "WorldVLA 256 px": (85.6, 89.0, 82.6, 59.0),
    "WorldVLA 512 px": (87.6, 96.2, 83.4, 60.0),
    "WorldVLA, chunk + action mask, no world data": (81.8, 90.9, 84.4, 49.3),
    "WorldVLA, chunk, no action mask, no world data": (36.7, 82.9, 79.6, 16.9),
    "RynnVLA-002 discrete": (94.2, 96.8, 94.6, 87.6),
    "RynnVLA-002 continuous": (99.0, 99.8, 96.4, 94.4),
}


def published_rates(suite: str) -> dict[str, float]:
    """Model -> published success rate on a suite, 0 to 1; empty for a suite without any."""
    if suite not in _SUITES:
        return {}
    column = _SUITES.index(suite)
    return {model: round(rates[column] / 100, 4) for model, rates in _RATES.items()}
