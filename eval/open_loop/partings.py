"""Errors of predicted actions, and the frames where a policy parts most from the expert."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.tokens.action import ActionRanges

MAX_PARTINGS = 4
_LEAST_APART = 5  # frames between two of them: neighbours show the same


def relative_errors(
    predicted: NDArray[np.float64],
    expert: NDArray[np.float64],
    ranges: ActionRanges,
    present: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Error of each action [T]: mean over its numbers of the distance, as a share of the number's range.

    Args:
        predicted: [T, D].
        expert: [T, D].
        ranges: Of the D numbers.
        present: Which of them the robot has, bool [D]; those of one value only are left out, too.
    """
    width = np.asarray(ranges.maximum) - np.asarray(ranges.minimum)
    counted = present & (width > 0)
    if not counted.any():
        return np.zeros(len(predicted))
    return (np.abs(predicted - expert)[:, counted] / width[counted]).mean(axis=1)


def constant_actions(expert: NDArray[np.float64]) -> NDArray[np.float64]:
    """For comparison: the constant action of least absolute error, at every step, [T, D]."""
    return np.broadcast_to(np.median(expert, axis=0), expert.shape)


def largest_partings(errors: NDArray[np.float64]) -> list[int]:
    """Numbers of the few frames with the largest errors [T], ascending, no two of them close together."""
    chosen: list[int] = []
    for frame in np.argsort(-errors, kind="stable").tolist():
        if errors[frame] > 0 and all(abs(frame - other) >= _LEAST_APART for other in chosen):
            chosen.append(frame)
        if len(chosen) == MAX_PARTINGS:
            break
    return sorted(chosen)
