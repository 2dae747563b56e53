"""The robot's state as one block of tokens: 256 uniform bins over a fixed range of each dimension.

    STATE_START  S bins  STATE_END

States are binned like actions. Ids and ranges of LIBERO's eight numbers are those of RynnVLA-002 (arXiv
2511.17502); states of other embodiments have S numbers, as many as their ranges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.errors import InputError
from data.tokens.action import BIN_WIDTH, EPSILON, quantise
from data.tokens.vocabulary import (
    ACTION_BIN_COUNT,
    STATE_BIN_START,
    STATE_DIM,
    STATE_END,
    STATE_START,
    block_length,
)

STATE_MIN: tuple[float, ...] = (
    -0.4827807,
    -0.3309336,
    0.00812818,
    1.00279467,
    -3.63125079,
    -1.84273835,
    -0.00545302,
    -0.04201502,
)
STATE_MAX: tuple[float, ...] = (
    0.210313803,
    0.39042644,
    1.47277813,
    3.72486417,
    3.56188956,
    1.38632160,
    0.0423214189,
    0.00131260958,
)


def check_state_ranges(
    minimum: Sequence[float],
    maximum: Sequence[float],
    width: int = STATE_DIM,
    settings: str = "data.state_ranges",
) -> None:
    """Refuse ranges that are not `width` finite pairs, each minimum below its maximum.

    Args:
        minimum: Smallest value of each number.
        maximum: Largest value of each number.
        width: S, numbers of a state.
        settings: What gives them, for the message.

    Raises:
        InputError: The ranges are of another shape, not finite or not increasing.
    """
    low, high = np.asarray(minimum, np.float64), np.asarray(maximum, np.float64)
    if low.shape != (width,) or high.shape != (width,):
        raise InputError(f"{settings} has {low.size} minima and {high.size} maxima, expected {width} of each")
    if not np.isfinite(low).all() or not np.isfinite(high).all() or bool((low >= high).any()):
        raise InputError(
            f"{settings} reach from {list(minimum)} to {list(maximum)}, expected finite numbers, each "
            "minimum below its maximum"
        )


def state_blocks(states: ArrayLike, minimum: Sequence[float], maximum: Sequence[float]) -> NDArray[np.int32]:
    """States [N, S] (any real dtype) -> one block each, int32 [N, S + 2].

    Args:
        states: LIBERO's: position in metres (3), axis-angle in radians (3), fingers in metres (2).
        minimum: Smallest value of each of the S dimensions; smaller ones are clipped.
        maximum: Largest value of each dimension; larger ones are clipped.

    Raises:
        InputError: Not [N, S], or a value is NaN.
    """
    values = np.asarray(states, np.float64)
    if values.ndim != 2 or values.shape[1] != len(minimum):
        raise InputError(f"states have shape {values.shape}, expected [N, {len(minimum)}]")
    if np.isnan(values).any():
        raise InputError("a state is no number; drop or repair the demonstration")
    blocks = np.empty((len(values), block_length(len(minimum))), np.int32)
    blocks[:, 0] = STATE_START
    blocks[:, 1:-1] = quantise(values, tuple(minimum), tuple(maximum)) + STATE_BIN_START
    blocks[:, -1] = STATE_END
    return blocks


def restore_states(
    ids: NDArray[np.integer], minimum: Sequence[float], maximum: Sequence[float]
) -> NDArray[np.float32]:
    """Bins of states [N, S] -> states float32 [N, S] that `state_blocks` turns into the same ids.

    A state is the centre of its bin; the last id, which stands for values from the maximum on, lies just
    above the maximum.

    Args:
        ids: Token ids of bins, 15,506 to 15,761.
        minimum: Smallest value of each of the S dimensions.
        maximum: Largest value of each dimension.
    """
    low, high = np.asarray(minimum, np.float64), np.asarray(maximum, np.float64)
    bins = ids.astype(np.int64) - STATE_BIN_START
    states = (low + (bins + 0.5) * (BIN_WIDTH / 2.0) * (high - low + EPSILON)).astype(np.float32)
    beyond = np.nextafter((high + 2.0 * EPSILON).astype(np.float32), np.float32(np.inf))
    return np.where(bins >= ACTION_BIN_COUNT - 1, beyond, states)
