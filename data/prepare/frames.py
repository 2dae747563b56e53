"""Frames before they are encoded: made square and resized."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.config import Fit
from data.errors import InputError, check_choice


def square_frames(frames: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3] -> uint8 [T, S, S, 3]; square ones are returned unchanged.

    Args:
        frames: Frames of any size.
        fit: `crop` takes the middle (S the shorter side), `pad` adds black borders (S the longer side),
            `stretch` resizes to the shorter side, `refuse` takes square frames only.

    Raises:
        InputError: Frames are not square and `fit` is `refuse`, or `fit` is none of these values.
    """
    _, height, width, _ = frames.shape
    check_choice("fit", fit, get_args(Fit))
    if height == width:
        return frames
    if fit == "refuse":
        raise InputError(
            f"frames are {height} x {width}, expected square ones; say what to do with fit=crop, fit=pad or "
            "fit=stretch"
        )
    side = min(height, width)
    if fit == "crop":
        top, left = (height - side) // 2, (width - side) // 2
        return frames[:, top : top + side, left : left + side]
    if fit == "stretch":
        return _resized(frames, side)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padding = ((0, 0), (top, side - height - top), (left, side - width - left), (0, 0))
    return np.pad(frames, padding)


def resize_frames(frames: NDArray[np.uint8], pixels: int) -> NDArray[np.uint8]:
    """Square frames uint8 [T, H, H, 3] -> uint8 [T, pixels, pixels, 3], Lanczos with antialiasing.

    Frames of that size are returned unchanged, so that a policy that renders at the training resolution sees
    what the tokenizer saw.

    Raises:
        InputError: Frames are not square.
    """
    _, height, width, _ = frames.shape
    if height != width:
        raise InputError(f"frames are {height} x {width}, expected square ones")
    if height == pixels:
        return frames
    return _resized(frames, pixels)


def _resized(frames: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    size = (side, side)
    resized = [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)) for frame in frames]
    return np.stack(resized)
