"""Frames and steps before they become tokens: size, and which steps are worth keeping."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from data.errors import InputError

NO_OP_MOTION = 1e-4  # norm of the six pose numbers, in the action's own units


FITS = ("refuse", "crop", "pad", "stretch")
"""What can be done to frames that are not square."""


def square_frames(frames: NDArray[np.uint8], fit: str) -> NDArray[np.uint8]:
    """Frames uint8 [T, H, W, 3] -> uint8 [T, S, S, 3]; square ones come back as they are.

    Args:
        frames: Of any size.
        fit: `crop` takes the middle (S the shorter side), `pad` adds black borders (S the longer side),
            `stretch` resizes to the shorter side, `refuse` takes square frames only.

    Raises:
        InputError: Frames are not square and `fit` is `refuse`, or `fit` is none of `FITS`.
    """
    _, height, width, _ = frames.shape
    if fit not in FITS:
        raise InputError(f"fit={fit}: expected one of {', '.join(FITS)}")
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

    Frames of that size already come back as they are, so that a policy that renders at the training
    resolution sees what the tokenizer saw.

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


def moving_steps(actions: ArrayLike) -> NDArray[np.bool_]:
    """Which actions [T, 7] are no no-ops, bool [T].

    A no-op leaves the pose alone (norm of the first six below `NO_OP_MOTION`) and the gripper command as
    it was in the last kept step. Published training drops them (WorldVLA, OpenVLA).
    """
    values = np.asarray(actions)
    moves = np.linalg.norm(values[:, :6], axis=1) >= NO_OP_MOTION
    keep = np.zeros(len(values), np.bool_)
    gripper: float | None = None
    for t, command in enumerate(values[:, 6]):
        if moves[t] or (gripper is not None and command != gripper):
            keep[t] = True
            gripper = float(command)
    return keep
