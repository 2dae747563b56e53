"""Views of runs of elements or rows, by which many pieces are copied at once."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", np.uint16, np.float32)


def runs(array: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    """The `size` elements from each element on, as a writable view [N - size + 1, size].

    Equal to numpy's `sliding_window_view`, which takes 20 us longer; a batch needs a dozen such views.
    """
    return np.ndarray((len(array) - size + 1, size), array.dtype, array, strides=2 * array.strides)


def row_runs(rows: NDArray[_Number], count: int) -> NDArray[_Number]:
    """`count` rows from each row on, one after the other, as a view [N - count + 1, count * width]."""
    shape = (len(rows) - count + 1, count * rows.shape[1])
    return np.ndarray(shape, rows.dtype, rows, strides=rows.strides)


def copy_runs(
    tokens: NDArray[np.int32],
    at: NDArray[np.int64],
    rows: NDArray[np.uint16],
    first: NDArray[np.int64],
    count: int,
) -> None:
    """Copy rows `first` .. `first + count - 1` to each position, one after the other."""
    runs(tokens, count * rows.shape[1])[at] = row_runs(rows, count)[first]
