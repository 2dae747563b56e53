"""Statistics of actions and states over a data set, per dimension, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.contracts import Statistics

_QUANTILES = (0.01, 0.99)
_DIGIT = 16  # bits of the values that one pass counts, from the top
_BUCKETS = 1 << _DIGIT
_DIGITS = 64 // _DIGIT


def summarise(parts: Iterable[NDArray[Any]]) -> Statistics:
    """Statistics of [N, D] arrays of floats together, computed in float64 (std is the population's).

    Quantiles are exact (linear between neighbours, numpy's default), however many rows there are: a float64
    has 64 bits, so one pass counts the upper 16 of every value, and three more each count the next 16 of
    those values that begin like the value at a requested rank. That takes 3 MB a dimension and no sorting.

    Args:
        parts: The arrays; iterated four times, in the same order.

    Raises:
        ValueError: There is no row.
    """
    first = _FirstPass(parts)
    if not first.count:
        raise ValueError("statistics of no rows")
    ranks = sorted({rank for q in _QUANTILES for rank in _neighbours(q, first.count)})
    ordered = _values_at(parts, first.take_histogram(), ranks)
    low, high = (_interpolated(q, first.count, ordered) for q in _QUANTILES)
    return Statistics(
        count=first.count,
        minimum=_tuple(first.minimum),
        maximum=_tuple(first.maximum),
        mean=_tuple(first.mean),
        std=_tuple(np.sqrt(first.squares / first.count)),
        q01=_tuple(low),
        q99=_tuple(high),
    )


class _FirstPass:
    """Count, extremes, mean, squared distances from the mean, and how often each upper digit occurs."""

    def __init__(self, parts: Iterable[NDArray[Any]]) -> None:
        self.count = 0
        self.minimum = self.maximum = self.mean = self.squares = np.zeros(0)
        self._histogram = np.zeros((0, _BUCKETS), np.int64)
        for part in parts:
            if len(part):
                self._add(part.astype(np.float64))

    def take_histogram(self) -> list[NDArray[np.int64]]:
        """Counts int64 [65536] of each dimension, which are not kept."""
        histogram, self._histogram = self._histogram, np.zeros((0, _BUCKETS), np.int64)
        return list(histogram)

    def _add(self, values: NDArray[np.float64]) -> None:
        if not self.count:
            width = values.shape[1]
            self.minimum, self.maximum = np.full(width, np.inf), np.full(width, -np.inf)
            self.mean, self.squares = np.zeros(width), np.zeros(width)
            self._histogram = np.zeros((width, _BUCKETS), np.int64)
        self.minimum = np.minimum(self.minimum, values.min(axis=0))
        self.maximum = np.maximum(self.maximum, values.max(axis=0))
        # Two groups' means and squared distances make those of both (Chan, Golub and LeVeque 1979).
        mean = values.mean(axis=0)
        distance, before, count = mean - self.mean, self.count, self.count + len(values)
        self.squares = self.squares + np.square(values - mean).sum(axis=0)
        self.squares += np.square(distance) * (before * len(values) / count)
        self.mean = self.mean + distance * (len(values) / count)
        self.count = count
        for d, keys in enumerate(_sortable(values).T):
            self._histogram[d] += _counted(keys >> np.uint64(64 - _DIGIT))


class _Place(NamedTuple):
    """A value on the way to be found: its digits so far, and its rank among the values that begin so."""

    prefix: int
    rank: int


def _values_at(
    parts: Iterable[NDArray[Any]], histogram: Sequence[NDArray[np.int64]], ranks: list[int]
) -> dict[int, NDArray[np.float64]]:
    """The values [D] at some ranks (0 is the smallest), found digit by digit."""
    width = len(histogram)
    counts: list[dict[int, NDArray[np.int64]]] = [{0: row} for row in histogram]
    del histogram
    places = [[_Place(0, rank) for rank in ranks] for _ in range(width)]
    for digits in range(1, _DIGITS + 1):
        places = [[_next_digit(counts[d][at.prefix], at) for at in places[d]] for d in range(width)]
        if digits == _DIGITS:
            break
        counts.clear()  # freed before the next ones are made
        counts = [{at.prefix: np.zeros(_BUCKETS, np.int64) for at in places[d]} for d in range(width)]
        for part in parts:
            for d, keys in enumerate(_sortable(part.astype(np.float64)).T):
                beginnings = keys >> np.uint64(64 - digits * _DIGIT)
                for prefix, count in counts[d].items():
                    chosen = keys[beginnings == np.uint64(prefix)] << np.uint64(digits * _DIGIT)
                    count += _counted(chosen >> np.uint64(64 - _DIGIT))
    values = np.array([[_value(at.prefix) for at in row] for row in places]).reshape(width, len(ranks))
    return {rank: values[:, number] for number, rank in enumerate(ranks)}


def _next_digit(counts: NDArray[np.int64], at: _Place) -> _Place:
    ends = np.cumsum(counts)
    digit = int(np.searchsorted(ends, at.rank, side="right"))
    return _Place(at.prefix << _DIGIT | digit, at.rank - int(ends[digit - 1] if digit else 0))


def _counted(digits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """How often each digit occurs, int64 [65536]."""
    return np.bincount(digits.astype(np.int64), minlength=_BUCKETS)


def _sortable(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Integers in the order of the values (IEEE 754: flip the sign bit, or all bits)."""
    bits = np.ascontiguousarray(values).view(np.uint64)
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def _value(key: int) -> float:
    bits = key & ~(1 << 63) if key >> 63 else ~key & 0xFFFF_FFFF_FFFF_FFFF
    return float(np.uint64(bits).view(np.float64))


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
