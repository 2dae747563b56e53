"""Frames side by side: one picture of a whole rollout."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GAP = 2  # pixels between frames
_LEAST_SIDE = 128  # pixels: smaller frames are enlarged by a whole factor to be seen
_MOST_COLUMNS = 12


def enlarge(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3], each pixel repeated so that a side has at least `_LEAST_SIDE`."""
    factor = -(-_LEAST_SIDE // frames.shape[1])
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def evenly(count: int, most: int = _MOST_COLUMNS) -> NDArray[np.int64]:
    """Numbers of at most so many of `count` frames, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def tile(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of frames uint8 [R, T, H, W, 3] -> one picture, thin white gaps between."""
    rows, columns, height, width, _ = frames.shape
    size = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    picture = np.full(size, 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            y, x = r * (height + _GAP), c * (width + _GAP)
            picture[y : y + height, x : x + width] = frames[r, c]
    return picture
