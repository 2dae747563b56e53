"""Checks of the arrays of a demonstration, the same for every format."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from data.errors import InputError

MAX_SIDE = 8192
"""Pixels of a compressed frame; more is a decompression bomb."""

OTHER_ACTION = "name its parts with action=[...], or export the data set again"
OTHER_STATE = "name its parts with state=[...], or leave the state out with state=[] (zeros instead)"


def finite_numbers(
    values: Any, name: str, width: int, where: str, steps: int | None, remedy: str
) -> NDArray[np.float64]:
    """Check a table [T, width] of finite numbers and return it as float64.

    Raises:
        InputError: Not numbers, of another shape (says `remedy`), another T than `steps`, or not finite.
    """
    table = np.asarray(values)
    numbers = table.dtype.kind in "fiu"
    if table.ndim != 2 or table.shape[1] != width or not numbers:
        found = f"has shape {table.shape}" if numbers else f"is {table.dtype} {table.shape}"
        raise InputError(f"{where}: {name} {found}, expected numbers [T, {width}]; {remedy}")
    check_steps(name, len(table), steps, where)
    return finite_float64(table, name, where)


def finite_float64(table: NDArray[Any], name: str, where: str) -> NDArray[np.float64]:
    """Convert a table [T, D] of numbers to float64, in which actions stay until they are encoded.

    Raises:
        InputError: A value is not finite, or beyond float32, which states are stored in.
    """
    numbers = table.astype(np.float64)
    usable = np.abs(numbers) <= np.finfo(np.float32).max  # false for NaN
    if not usable.all():
        row, column = (int(i) for i in np.argwhere(~usable)[0])
        raise InputError(
            f"{where}: {name}[{row}, {column}] is {numbers[row, column]}, expected a finite number; "
            "delete or repair this demonstration"
        )
    return numbers


def join_parts(parts: Sequence[NDArray[Any]], names: Sequence[str], where: str) -> NDArray[Any]:
    """Join tables [T, D] side by side (InputError: one has another T than the first)."""
    for part, name in zip(parts, names, strict=True):
        check_steps(name, len(part), len(parts[0]), where)
    return np.concatenate(parts, axis=1)


def join_action(
    parts: Sequence[NDArray[Any]], names: Sequence[str], width: int, where: str, steps: int
) -> NDArray[np.float64]:
    """Join parts [T, D] of an action to float64 [T, width].

    Raises:
        InputError: As `finite_numbers`.
    """
    joined = join_parts(parts, names, where)
    return finite_numbers(joined, " + ".join(names), width, where, steps, OTHER_ACTION)


def join_state(
    parts: Sequence[NDArray[Any]], names: Sequence[str], width: int, where: str, steps: int
) -> NDArray[np.float32]:
    """Join parts [T, D] of a state to float32 [T, width]; zeros where there are no parts.

    Raises:
        InputError: As `finite_numbers`.
    """
    if not parts:
        return np.zeros((steps, width), np.float32)
    joined = join_parts(parts, names, where)
    return finite_numbers(joined, " + ".join(names), width, where, steps, OTHER_STATE).astype(np.float32)


def check_file(path: Path, what: str) -> None:
    """Refuse a path where no file is (InputError); `what` was expected there."""
    if not path.is_file():
        raise missing_file(path, what)


def missing_file(path: PurePath, what: str) -> InputError:
    """The error of a path where no file is and `what` was expected."""
    return InputError(f"{path}: no such file, expected {what}; copy the data set again")


def check_steps(name: str, length: int, steps: int | None, where: str) -> None:
    """Refuse a part that is longer or shorter than the others (InputError)."""
    if steps is not None and length != steps:
        raise InputError(
            f"{where}: {name} has {length} time steps, expected {steps}; delete or export this "
            "demonstration again"
        )


def decode_picture(content: bytes, where: str) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG file to uint8 [H, W, 3].

    Raises:
        InputError: Neither format, damaged, or too large.
    """
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "JPEG")) as picture:
            if max(picture.size) > MAX_SIDE:
                raise InputError(
                    f"{where}: a frame of {picture.size} pixels, expected at most {MAX_SIDE} a side"
                )
            return np.asarray(picture.convert("RGB"), np.uint8)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(
            f"{where}: a frame is no readable PNG or JPEG ({error}); copy the data set again"
        ) from error


def stack_frames(frames: Sequence[NDArray[np.uint8]], name: str, where: str) -> NDArray[np.uint8]:
    """Stack frames of one size [H, W, 3] to uint8 [T, H, W, 3]; InputError where sizes differ."""
    sizes = {frame.shape for frame in frames}
    if len(sizes) != 1:
        raise InputError(f"{where}: {name} has frames of sizes {sorted(sizes)[:3]}, expected one size")
    return np.stack(frames)
