"""Checks that the arrays of a demonstration pass, whatever format they come from."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.errors import InputError

_LARGEST_SIDE = 8192  # pixels of a compressed frame; more is a bomb


def finite_numbers(values: Any, name: str, width: int, where: str, steps: int | None) -> NDArray[np.float32]:
    """A table [T, width] of finite numbers as float32.

    Raises:
        InputError: Not numbers, of another shape, another T than `steps`, or not finite.
    """
    table = np.asarray(values)
    if table.ndim != 2 or table.shape[1] != width or table.dtype.kind not in "fiu":
        raise InputError(
            f"{where}: {name} is {table.dtype} {table.shape}, expected numbers [T, {width}]; name other "
            "parts with action= or state=[...], or export the data set again"
        )
    check_steps(name, len(table), steps, where)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite below
        numbers = table.astype(np.float32)
    if not np.isfinite(numbers).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(numbers))[0])
        raise InputError(
            f"{where}: {name}[{row}, {column}] is {numbers[row, column]}, expected a finite number; "
            "delete or repair this demonstration"
        )
    return numbers


def join_state(
    parts: Sequence[NDArray[Any]], names: Sequence[str], width: int, where: str, steps: int
) -> NDArray[np.float32]:
    """Parts [T, D] of a state side by side, float32 [T, width]; zeros where no part is wanted.

    Raises:
        InputError: As `finite_numbers`.
    """
    if not parts:
        return np.zeros((steps, width), np.float32)
    return finite_numbers(np.concatenate(parts, axis=1), " + ".join(names), width, where, steps)


def check_steps(name: str, found: int, steps: int | None, where: str) -> None:
    """Refuse a part that is longer or shorter than the others (InputError)."""
    if steps is not None and found != steps:
        raise InputError(
            f"{where}: {name} has {found} time steps, expected {steps}; delete or export this "
            "demonstration again"
        )


def decode_picture(content: bytes, where: str) -> NDArray[np.uint8]:
    """A PNG or JPEG file -> uint8 [H, W, 3].

    Raises:
        InputError: Neither, broken, or absurdly large.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
            if max(picture.size) > _LARGEST_SIDE:
                raise InputError(f"{where}: a frame of {picture.size} pixels, expected at most 8192 a side")
            return np.asarray(picture.convert("RGB"), np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{where}: a frame is no readable PNG or JPEG ({error}); copy the data set again"
        ) from error


def stack_frames(frames: Sequence[NDArray[np.uint8]], name: str, where: str) -> NDArray[np.uint8]:
    """Frames of one size [H, W, 3] -> uint8 [T, H, W, 3]; InputError when sizes differ."""
    sizes = {frame.shape for frame in frames}
    if len(sizes) != 1:
        raise InputError(f"{where}: {name} has frames of sizes {sorted(sizes)[:3]}, expected one size")
    return np.stack(frames)


def clean_instruction(text: str, where: str) -> str:
    """Lower case, without quotes and doubled spaces; InputError when nothing is left."""
    cleaned = " ".join(text.strip().strip('"').lower().split())
    if not cleaned:
        raise InputError(f"{where}: the instruction is empty; give each demonstration a task text")
    return cleaned


def slug(text: str) -> str:
    """A text as part of a name: letters, digits and single underscores, at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:100].strip("_") or "task"
