"""Contact sheets: the frames of a rollout side by side in one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_GAP = 2  # pixels between frames
_MIN_SIDE = 128  # pixels: smaller frames are enlarged by a whole factor
_MAX_COLUMNS = 12
_LABEL_PIXELS = 16  # size of the font
_LABEL_GAP = 8  # pixels around labels


def enlarge(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the pixels of frames uint8 [T, H, W, 3] by a whole factor, to at least 128 pixels a side."""
    factor = -(-_MIN_SIDE // frames.shape[1])
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def evenly_spaced(count: int, max_count: int = _MAX_COLUMNS) -> NDArray[np.int64]:
    """Indices int64 [min(count, max_count)] of evenly spaced frames, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, max_count)).round().astype(np.int64))


def tile(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tile rows of frames uint8 [R, T, H, W, 3] into one picture uint8 [H', W', 3] with thin white gaps."""
    rows, columns, height, width, _ = frames.shape
    size = (rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    picture = np.full(size, 255, np.uint8)
    for r in range(rows):
        for c in range(columns):
            y, x = r * (height + _GAP), c * (width + _GAP)
            picture[y : y + height, x : x + width] = frames[r, c]
    return picture


def label(picture: NDArray[np.uint8], columns: Sequence[str], rows: Sequence[str]) -> NDArray[np.uint8]:
    """Write labels above the columns and beside the rows of a tiled picture uint8 [H, W, 3].

    Args:
        picture: From `tile`.
        columns: One label for each column.
        rows: One label for each row.

    Returns:
        uint8 [H', W', 3]: the picture with a white margin at the top and at the left.
    """
    font = ImageFont.load_default(_LABEL_PIXELS)
    left = 2 * _LABEL_GAP + math.ceil(max(font.getlength(text) for text in rows))
    top = 2 * _LABEL_GAP + _LABEL_PIXELS
    height, width, _ = picture.shape
    sheet = Image.new("RGB", (left + width, top + height), "white")
    sheet.paste(Image.fromarray(picture), (left, top))
    draw = ImageDraw.Draw(sheet)
    for number, text in enumerate(columns):
        middle = left + (number + 0.5) * (width + _GAP) / len(columns)
        draw.text((middle, top / 2), text, fill="black", font=font, anchor="mm")
    for number, text in enumerate(rows):
        middle = top + (number + 0.5) * (height + _GAP) / len(rows)
        draw.text((left - _LABEL_GAP, middle), text, fill="black", font=font, anchor="rm")
    return np.asarray(sheet)
