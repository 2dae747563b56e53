"""Actions to token ids and back: 256 uniform bins over a fixed range of each dimension.

The formulas are WorldVLA's, bit for bit: normalise to [-1, 1], find the bin among 256 edges, and
decode to the centre of the bin. The gripper is a plain seventh dimension. Actions of other embodiments have D
numbers, as many as their ranges, and the same formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.contracts import MAX_ACTION_DIM
from data.errors import InputError
from data.tokens.vocabulary import ACTION_BIN_COUNT, ACTION_BIN_END, ACTION_BIN_START

ACTION_MIN: tuple[float, ...] = (-0.9375, -0.9375, -0.9375, -0.32571429, -0.375, -0.375, -1.0)
ACTION_MAX: tuple[float, ...] = (0.9375, 0.9375, 0.9375, 0.375, 0.375, 0.375, 1.0)

EPSILON = 1e-8  # part of the published formula: a dimension of zero width stays finite
BIN_WIDTH = 2.0 / (ACTION_BIN_COUNT - 1)
"""Width of one bin in normalised units, in which every dimension spans -1 to 1."""

_EDGES = np.linspace(-1.0, 1.0, ACTION_BIN_COUNT)
_NEXT_EDGES = np.append(_EDGES[1:], np.inf)
_CENTERS = (_EDGES[:-1] + _EDGES[1:]) / 2.0


@dataclass(frozen=True, slots=True)
class ActionRanges:
    """Smallest and largest value of each of D dimensions (1 to 32); values outside are clipped.

    Raises:
        InputError: Not as many finite minima as maxima, or a minimum above its maximum.
    """

    minimum: tuple[float, ...] = ACTION_MIN
    maximum: tuple[float, ...] = ACTION_MAX

    def __post_init__(self) -> None:
        low, high = np.asarray(self.minimum, np.float64), np.asarray(self.maximum, np.float64)
        if low.shape != high.shape or low.ndim != 1 or not 1 <= len(low) <= MAX_ACTION_DIM:
            raise InputError(
                f"action ranges are {low.shape} and {high.shape}, expected as many minima as maxima, 1 to "
                f"{MAX_ACTION_DIM}"
            )
        if not np.isfinite(low).all() or not np.isfinite(high).all() or bool((low > high).any()):
            raise InputError(
                f"action ranges {self.minimum} to {self.maximum} are not finite and increasing; "
                "give a minimum at most as large as the maximum for each dimension"
            )

    @property
    def width(self) -> int:
        """D, numbers of an action."""
        return len(self.minimum)


DEFAULT_RANGES = ActionRanges()

NamedRanges = Literal["worldvla", "rynnvla"]
NAMED_RANGES: dict[NamedRanges, ActionRanges] = {
    "worldvla": DEFAULT_RANGES,
    "rynnvla": ActionRanges(
        minimum=(-0.9375, -0.9375, -0.9375, -0.24214286, -0.375, -0.36428571, -1.0),
        maximum=(0.9375, 0.9375, 0.9375, 0.34821429, 0.375, 0.375, 1.0),
    ),
}
"""Published ranges: WorldVLA's and those of RynnVLA-002."""


def encode(actions: ArrayLike, ranges: ActionRanges = DEFAULT_RANGES) -> NDArray[np.int64]:
    """Actions [N, D] (robot units) -> ids int64 [N, D] in [10006, 10261].

    Actions are float64, as LIBERO stores them: many lie on the edge of a bin, and rounding to float32 moves
    some into the next one (-0.225 in dimension 4: id 10056, as float32 10057).

    Id 10261 stands for a normalised value of exactly 1 and decodes like 10260 (a quirk of the
    published tokenizer that trained checkpoints depend on). Values outside the ranges, infinite ones too,
    are clipped, as in the published formula; the readers of demonstrations refuse infinite actions earlier.

    Raises:
        InputError: Not [N, D], or a value is NaN.
    """
    return encode_normalised(normalise(actions, ranges))


def encode_normalised(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Actions [N, D] as `normalise` returns them -> ids int64 [N, D], as `encode`.

    Raises:
        InputError: A value is NaN.
    """
    if np.isnan(values).any():
        row, column = (int(i) for i in np.argwhere(np.isnan(values))[0])
        raise InputError(
            f"action {row} has {values[row, column]} in dimension {column}, expected a number; "
            "drop or repair the demonstration"
        )
    return _bins(values) + ACTION_BIN_START


def normalise(actions: ArrayLike, ranges: ActionRanges = DEFAULT_RANGES) -> NDArray[np.float64]:
    """Actions [N, D] (robot units) -> float64 [N, D] in normalised units, clipped to -1 to 1.

    Raises:
        InputError: Not [N, D].
    """
    values = np.asarray(actions, dtype=np.float64)
    _check_width("actions", values.shape, ranges)
    return _normalise(values, ranges.minimum, ranges.maximum)


def denormalise(values: ArrayLike, ranges: ActionRanges = DEFAULT_RANGES) -> NDArray[np.float64]:
    """Normalised actions [N, D] -> float64 [N, D] in robot units: the inverse of `normalise`.

    Values outside -1 to 1 are clipped: no training action lies beyond the ranges.

    Raises:
        InputError: Not [N, D].
    """
    normalised = np.asarray(values, dtype=np.float64)
    _check_width("normalised actions", normalised.shape, ranges)
    low, width = _low_and_width(ranges)
    return (np.clip(normalised, -1.0, 1.0) + 1.0) / 2.0 * width + low


def bin_centers(ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """Ids of action bins (any shape) -> the bins' centres in normalised units; other ids: the nearest bin."""
    return _CENTERS[np.clip(ids.astype(np.int64) - ACTION_BIN_START, 0, len(_CENTERS) - 1)]


def quantise(
    values: NDArray[np.float64], minimum: tuple[float, ...], maximum: tuple[float, ...]
) -> NDArray[np.int64]:
    """Bin numbers int64 [N, D] in [0, 255] of numbers [N, D] over the ranges of the D dimensions.

    Bin 255 holds only the maximum (within rounding); values outside the range are clipped.
    """
    return _bins(_normalise(values, minimum, maximum))


def _bins(normalised: NDArray[np.float64]) -> NDArray[np.int64]:
    # Estimate the bin, then correct it by at most one: equal to `np.digitize` in a fifth of its time.
    bins = ((normalised + 1.0) / BIN_WIDTH).astype(np.int64)
    bins += normalised >= _NEXT_EDGES[bins]
    bins -= normalised < _EDGES[bins]
    return bins


def decode(ids: ArrayLike, ranges: ActionRanges = DEFAULT_RANGES) -> NDArray[np.float64]:
    """Ids [N, D] (integers) -> actions float64 [N, D]: the centre of each id's bin.

    Ids outside the action bins count as the nearest bin, as in the published formula.

    Raises:
        InputError: Not [N, D], or not integers.
    """
    tokens = np.asarray(ids)
    _check_width("action ids", tokens.shape, ranges)
    if not np.issubdtype(tokens.dtype, np.integer):
        raise InputError(f"action ids are {tokens.dtype}, expected integers")
    low, width = _low_and_width(ranges)
    return (bin_centers(tokens) + 1.0) / 2.0 * width + low


def restore(ids: ArrayLike, ranges: ActionRanges = DEFAULT_RANGES) -> NDArray[np.float64]:
    """Ids [N, D] (integers) -> actions float64 [N, D] that `encode` turns into the same ids.

    As `decode`, but for the last id, 10261: it stands for values above the maximum, which are clipped, so its
    action lies just above the maximum.

    Raises:
        InputError: As `decode`.
    """
    actions = decode(ids, ranges)
    beyond = np.asarray(ranges.maximum, np.float64) + 2.0 * EPSILON
    return np.where(np.asarray(ids) == ACTION_BIN_END - 1, beyond, actions)


def _normalise(
    values: NDArray[np.float64], minimum: tuple[float, ...], maximum: tuple[float, ...]
) -> NDArray[np.float64]:
    low = np.asarray(minimum, np.float64)
    width = np.asarray(maximum, np.float64) - low + EPSILON
    return np.clip(2.0 * (values - low) / width - 1.0, -1.0, 1.0)


def _low_and_width(ranges: ActionRanges) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    low = np.asarray(ranges.minimum, np.float64)
    return low, np.asarray(ranges.maximum, np.float64) - low + EPSILON


def _check_width(what: str, shape: tuple[int, ...], ranges: ActionRanges) -> None:
    if len(shape) != 2 or shape[1] != ranges.width:
        raise InputError(
            f"{what} have shape {shape}, expected [N, {ranges.width}], as many numbers as their ranges"
        )
