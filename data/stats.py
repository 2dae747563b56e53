"""Summary of actions and states over a data set, one number per dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Statistics:
    """Per-dimension summary; units are those of the values. `q01` and `q99` are percentiles 1 and 99."""

    count: int
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]


def summarise(parts: Sequence[NDArray[np.float32]]) -> Statistics:
    """Summary of [N, D] arrays taken together, computed in float64 (std is the population's).

    Raises:
        ValueError: There is no row at all.
    """
    values = np.concatenate([part.astype(np.float64) for part in parts])
    if not len(values):
        raise ValueError("statistics of no rows")
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    return Statistics(
        count=len(values),
        minimum=_tuple(values.min(axis=0)),
        maximum=_tuple(values.max(axis=0)),
        mean=_tuple(values.mean(axis=0)),
        std=_tuple(values.std(axis=0)),
        q01=_tuple(low),
        q99=_tuple(high),
    )


def _tuple(row: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in row)
