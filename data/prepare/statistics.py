"""Statistics of actions and states over a data set, per dimension, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from data.contracts import Statistics

_QUANTILES = (0.01, 0.99)
_HALF = 16  # bits: values are sorted by their upper and their lower half
_BUCKETS = 1 << _HALF


def summarise(parts: Iterable[NDArray[np.float32]]) -> Statistics:
    """Statistics of float32 [N, D] arrays together, computed in float64 (std is the population's).

    Quantiles are exact (linear between neighbours, numpy's default), however many rows there are: a float32
    has 32 bits, so one pass counts the upper 16 of every value and a second the lower 16 of those values
    whose upper half is that of a requested rank. That takes 3 MB a dimension and no sorting.

    Args:
        parts: The arrays; iterated twice, in the same order.

    Raises:
        ValueError: There is no row.
    """
    first = _FirstPass(parts)
    if not first.count:
        raise ValueError("statistics of no rows")
    ranks = sorted({rank for q in _QUANTILES for rank in _neighbours(q, first.count)})
    ordered, std = _second_pass(parts, first, ranks)
    low, high = (_interpolated(q, first.count, ordered) for q in _QUANTILES)
    return Statistics(
        count=first.count,
        minimum=_tuple(first.minimum),
        maximum=_tuple(first.maximum),
        mean=_tuple(first.mean),
        std=_tuple(std),
        q01=_tuple(low),
        q99=_tuple(high),
    )


class _FirstPass:
    """Count, extremes, mean, and how often each upper half occurs: int64 [D, 65536]."""

    def __init__(self, parts: Iterable[NDArray[np.float32]]) -> None:
        self.count = 0
        self.minimum = self.maximum = self.mean = np.zeros(0)
        self.histogram = np.zeros((0, _BUCKETS), np.int64)
        total = np.zeros(0)
        for part in parts:
            if not len(part):
                continue
            values = part.astype(np.float64)
            if not self.count:
                width = part.shape[1]
                self.minimum, self.maximum = np.full(width, np.inf), np.full(width, -np.inf)
                self.histogram, total = np.zeros((width, _BUCKETS), np.int64), np.zeros(width)
            self.count += len(part)
            self.minimum = np.minimum(self.minimum, values.min(axis=0))
            self.maximum = np.maximum(self.maximum, values.max(axis=0))
            total += values.sum(axis=0)
            for d, keys in enumerate(_sortable(part).T):
                self.histogram[d] += np.bincount(keys >> _HALF, minlength=_BUCKETS)
        if self.count:
            self.mean = total / self.count


def _second_pass(
    parts: Iterable[NDArray[np.float32]], first: _FirstPass, ranks: list[int]
) -> tuple[dict[int, NDArray[np.float64]], NDArray[np.float64]]:
    """The values [D] of some ranks (0 is the smallest), and the standard deviation [D]."""
    below = np.cumsum(first.histogram, axis=1)
    width = len(below)
    upper = [[int(np.searchsorted(below[d], rank, side="right")) for rank in ranks] for d in range(width)]
    counts = [{half: np.zeros(_BUCKETS, np.int64) for half in upper[d]} for d in range(width)]
    squares = np.zeros(width)
    for part in parts:
        squares += np.square(part.astype(np.float64) - first.mean).sum(axis=0)
        for d, keys in enumerate(_sortable(part).T):
            for half, histogram in counts[d].items():
                lower = keys[keys >> _HALF == half] & (_BUCKETS - 1)
                histogram += np.bincount(lower, minlength=_BUCKETS)
    ordered = {rank: np.zeros(width) for rank in ranks}
    for d in range(width):
        for half, rank in zip(upper[d], ranks, strict=True):
            within = rank - int(below[d][half - 1] if half else 0)
            lower = int(np.searchsorted(np.cumsum(counts[d][half]), within, side="right"))
            ordered[rank][d] = _value(half << _HALF | lower)
    return ordered, np.sqrt(squares / first.count)


def _sortable(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Integers below 2**32 in the order of the values (IEEE 754: flip the sign bit, or all bits)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def _value(key: int) -> float:
    bits = key & ~(1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.uint32(bits).view(np.float32))


def _neighbours(quantile: float, count: int) -> tuple[int, int]:
    place = quantile * (count - 1)
    return math.floor(place), math.ceil(place)


def _interpolated(
    quantile: float, count: int, ordered: dict[int, NDArray[np.float64]]
) -> NDArray[np.float64]:
    low, high = _neighbours(quantile, count)
    share = quantile * (count - 1) - low
    return ordered[low] + (ordered[high] - ordered[low]) * share


def _tuple(row: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in row)
