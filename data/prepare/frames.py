"""Frames before they are encoded: made square and resized."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.config import Fit
from data.contracts import Resize
from data.errors import InputError, check_choice

_FILTERS = {"box_bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def fit_frames(frames: NDArray[np.uint8], pixels: int, fit: Fit, resize: Resize) -> NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3] of any size -> uint8 [T, pixels, pixels, 3].

    Frames of that size are returned unchanged, so that a policy that renders at the training resolution sees
    what the tokenizer saw. `fit=crop` with `resize=box_bicubic` is the published code's order: resized until
    the shorter side fits, then cropped.

    Args:
        frames: Frames of any size.
        pixels: Side of the result.
        fit: As of `square_frames`.
        resize: As of `resize_frames`.

    Raises:
        InputError: As `square_frames`, or `resize` is none of its values.
    """
    if fit == "crop" and resize == "box_bicubic":
        return square_frames(_box_bicubic(frames, pixels), fit)
    return resize_frames(square_frames(frames, fit, resize), pixels, resize)


def square_frames(frames: NDArray[np.uint8], fit: Fit, resize: Resize = "box_bicubic") -> NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3] -> uint8 [T, S, S, 3]; square ones are returned unchanged.

    Args:
        frames: Frames of any size.
        fit: `crop` takes the middle (S the shorter side), `pad` adds black borders (S the longer side),
            `stretch` resizes to the shorter side, `refuse` takes square frames only.
        resize: Chooses the filter of `stretch`.

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
        return _resampled(frames, (side, side), _FILTERS[resize])
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    padding = ((0, 0), (top, side - height - top), (left, side - width - left), (0, 0))
    return np.pad(frames, padding)


def resize_frames(
    frames: NDArray[np.uint8], pixels: int, resize: Resize = "box_bicubic"
) -> NDArray[np.uint8]:
    """Square frames uint8 [T, H, H, 3] -> uint8 [T, pixels, pixels, 3]; those of that size are unchanged.

    Args:
        frames: Square frames.
        pixels: Side of the result.
        resize: `box_bicubic`, as the published code resizes: halved by a box filter while at least twice as
            large, then bicubic; or `lanczos`.

    Raises:
        InputError: Frames are not square, or `resize` is none of these values.
    """
    _, height, width, _ = frames.shape
    check_choice("resize", resize, get_args(Resize))
    if height != width:
        raise InputError(f"frames are {height} x {width}, expected square ones")
    if resize == "box_bicubic":
        return _box_bicubic(frames, pixels)
    return _resampled(frames, (pixels, pixels), _FILTERS[resize])


def _box_bicubic(frames: NDArray[np.uint8], pixels: int) -> NDArray[np.uint8]:
    """Frames resized until their shorter side has `pixels`; the aspect is kept."""
    _, height, width, _ = frames.shape
    while min(height, width) >= 2 * pixels:
        height, width = height // 2, width // 2
        frames = _resampled(frames, (height, width), Image.Resampling.BOX)
    scale = pixels / min(height, width)
    return _resampled(frames, (round(height * scale), round(width * scale)), Image.Resampling.BICUBIC)


def _resampled(
    frames: NDArray[np.uint8], size: tuple[int, int], resampling: Image.Resampling
) -> NDArray[np.uint8]:
    """Frames of `size` (height, width); those of that size are returned unchanged."""
    height, width = size
    if frames.shape[1:3] == size:
        return frames
    images = (Image.fromarray(frame).resize((width, height), resampling) for frame in frames)
    return np.stack([np.asarray(image) for image in images])
