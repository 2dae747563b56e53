"""What can be done to a part of an action or a state, before the parts are joined.

Every function takes the numbers of one whole episode, float64 [T, D] with T from 1, and returns a new
float64 [T, D'] with the same T. None keeps anything between episodes. Units are those of the data set unless
a function says otherwise; angles are radians.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.recipe_settings import Operation, OperationName, QuaternionOrder

Table = NDArray[np.float64]

_NO_AXIS = 1e-9  # imaginary part of a unit quaternion (sine of half the angle) below which it has no axis


def select(values: Table, columns: Sequence[int]) -> Table:
    """The columns of these numbers (from 0), in this order: [T, len(columns)].

    Raises:
        InputError: There is no such column.
    """
    wrong = [column for column in columns if not 0 <= column < values.shape[1]]
    if wrong or not columns:
        raise InputError(
            f"select: columns={list(columns)} of {values.shape[1]} columns, expected numbers from 0 to "
            f"{values.shape[1] - 1}; correct them"
        )
    return values[:, list(columns)]


def scale(values: Table, factor: float = 1.0, offset: float = 0.0) -> Table:
    """``factor * value + offset``: another unit, sign or range."""
    return values * factor + offset


def invert(values: Table, low: float = 0.0, high: float = 1.0) -> Table:
    """Mirror in the middle of a range: `low` becomes `high` and `high` becomes `low`."""
    return low + high - values


def clip(values: Table, low: float, high: float) -> Table:
    """Values beyond a range become its ends."""
    return np.clip(values, low, high)


def binarise(values: Table, low: float = 0.05, high: float = 0.95) -> Table:
    """0 where a value is below `low`, 1 where it is above `high`.

    A value between them, of a gripper on its way, becomes what it is on its way to: the next 0 or 1 of its
    column; after the last one that one. A column that never leaves the middle is 0 below it and else 1.
    """
    extreme = (values < low) | (values > high)
    binary = (values > (low + high) / 2).astype(np.float64)
    binary[values == (low + high) / 2] = 1.0
    steps = np.arange(len(values))[:, None]
    following = np.minimum.accumulate(np.where(extreme, steps, len(values))[::-1], axis=0)[::-1]
    preceding = np.maximum.accumulate(np.where(extreme, steps, -1), axis=0)
    chosen = np.where(following < len(values), following, np.where(preceding >= 0, preceding, steps))
    return np.take_along_axis(binary, chosen, axis=0)


def relative_to_absolute(values: Table, threshold: float = 0.1) -> Table:
    """Commands "close" (positive) and "open" (negative) to the state they lead to: 1 closed, 0 open.

    A command between -`threshold` and `threshold` changes nothing. Before the first command the gripper is in
    the other state than that command leads to; without any command it is open.
    """
    command = np.sign(np.where(np.abs(values) > threshold, values, 0.0))
    given = command != 0
    steps = np.arange(len(values))[:, None]
    last = np.maximum.accumulate(np.where(given, steps, -1), axis=0)
    closed = np.take_along_axis(command, np.maximum(last, 0), axis=0) > 0
    first = np.take_along_axis(command, given.argmax(axis=0)[None], axis=0)
    return np.where(last >= 0, closed, first < 0).astype(np.float64)


def delta_from_absolute(values: Table, wrap: bool = False) -> Table:
    """What each step adds to reach the next one, ``values[t + 1] - values[t]``; 0 in the last step.

    With `wrap` values are angles in radians, and a difference is the shorter way, in [-pi, pi). (Not for
    axis-angle vectors, whose difference is no rotation.)
    """
    change = np.diff(values, axis=0, append=values[-1:])
    return (change + math.pi) % (2 * math.pi) - math.pi if wrap else change


def quaternion_to_axis_angle(values: Table, order: QuaternionOrder = "xyzw") -> Table:
    """Orientations as quaternions [T, 4] to axis times angle [T, 3] in radians, in the same frame.

    A quaternion and its negative are the same orientation. The result is continuous over the episode
    whichever of them is stored: the first angle is at most pi, later ones may exceed it.

    Raises:
        InputError: Not four columns, or a quaternion of zeros.
    """
    if values.shape[1] != 4:
        raise InputError(f"quaternion_to_axis_angle: {values.shape[1]} columns, expected 4; select them")
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    if not (norms > 0).all():
        step = int(np.argmin(norms > 0))
        raise InputError(
            f"quaternion_to_axis_angle: step {step} is {values[step].tolist()}, no rotation; repair "
            "or delete this demonstration"
        )
    ordered = values if order == "xyzw" else values[:, [1, 2, 3, 0]]
    return _axis_angle(ordered / norms)


def euler_to_axis_angle(values: Table) -> Table:
    """Roll, pitch, yaw [T, 3] in radians to axis times angle [T, 3] in radians, in the same frame.

    The rotations are about the fixed axes x, then y, then z. Continuous over the episode as
    `quaternion_to_axis_angle` is.

    Raises:
        InputError: Not three columns.
    """
    if values.shape[1] != 3:
        raise InputError(f"euler_to_axis_angle: {values.shape[1]} columns, expected 3; select them")
    (sx, sy, sz), (cx, cy, cz) = np.sin(values.T / 2), np.cos(values.T / 2)
    quaternions = [
        sx * cy * cz - cx * sy * sz,
        cx * sy * cz + sx * cy * sz,
        cx * cy * sz - sx * sy * cz,
        cx * cy * cz + sx * sy * sz,
    ]
    return _axis_angle(np.stack(quaternions, axis=1))


def pad(values: Table, width: int) -> Table:
    """Zeros behind the columns, up to `width` of them.

    Raises:
        InputError: There are more already.
    """
    if values.shape[1] > width:
        raise InputError(f"pad: {values.shape[1]} columns, expected at most width={width}; correct it")
    return np.pad(values, ((0, 0), (0, width - values.shape[1])))


_OPERATIONS: dict[str, Callable[..., Table]] = {
    "select": select,
    "scale": scale,
    "invert": invert,
    "clip": clip,
    "binarise": binarise,
    "relative_to_absolute": relative_to_absolute,
    "delta_from_absolute": delta_from_absolute,
    "quaternion_to_axis_angle": quaternion_to_axis_angle,
    "euler_to_axis_angle": euler_to_axis_angle,
    "pad": pad,
}
assert tuple(_OPERATIONS) == get_args(OperationName)

Step = Callable[[Table], Table]


def resolve(operations: Sequence[str | Operation], where: str) -> list[Step]:
    """The functions that a setting `do` names, each with its parameters.

    Args:
        operations: Names, or operations with parameters.
        where: Leads the messages.

    Raises:
        InputError: There is no such operation, or it lacks a parameter or has none of that name.
    """
    return [
        _resolve(Operation(cast(Any, each)) if isinstance(each, str) else each, where) for each in operations
    ]


def _resolve(operation: Operation, where: str) -> Step:
    function = _OPERATIONS.get(operation.name)
    if function is None:
        meant = _nearest(operation.name, list(_OPERATIONS))
        raise InputError(
            f"{where}: no operation {operation.name!r}{meant} (there are: {', '.join(_OPERATIONS)})"
        )
    given = {
        each.name: value
        for each in fields(operation)
        if each.name != "name" and (value := getattr(operation, each.name)) is not None
    }
    known = dict(list(inspect.signature(function).parameters.items())[1:])
    for name in given:
        if name not in known:
            expected = ", ".join(known) or "none"
            raise InputError(
                f"{where}: {operation.name} has no parameter {name!r}{_nearest(name, list(known))}; its "
                f"parameters: {expected}"
            )
    if missing := [name for name, each in known.items() if each.default is each.empty and name not in given]:
        raise InputError(f"{where}: {operation.name} needs {' and '.join(missing)}; add {missing[0]}: ...")
    return lambda values: function(values, **given)


def _nearest(word: str, candidates: Sequence[str]) -> str:
    matches = difflib.get_close_matches(word, candidates, n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _axis_angle(quaternions: Table) -> Table:
    """Unit quaternions [T, 4] (x y z w) to a continuous axis times angle [T, 3].

    Signs of the quaternions are chosen so that each is near the one before, those of the axes as well; the
    angle about such an axis then has no jumps but multiples of 4 pi, which are taken out.
    """
    quaternions = quaternions * _continuous_signs(quaternions, first=np.sign(quaternions[0, 3]) or 1.0)
    imaginary, real = quaternions[:, :3], quaternions[:, 3]
    sines = np.linalg.norm(imaginary, axis=1)
    has_axis = np.flatnonzero(sines > _NO_AXIS)
    if not len(has_axis):
        return 2 * imaginary
    # A quaternion without an axis gets that of the step before, or the first one.
    source = np.zeros(len(sines), np.int64)
    source[has_axis] = np.arange(len(has_axis))
    source = np.maximum.accumulate(source)
    axes = (imaginary[has_axis] / sines[has_axis, None])[source]
    axes = axes * _continuous_signs(axes, first=1.0)
    angles = 2 * np.arctan2((imaginary * axes).sum(axis=1), real)
    return axes * np.unwrap(angles, period=4 * math.pi)[:, None]


def _continuous_signs(vectors: Table, first: float) -> Table:
    """Signs [T, 1] under which no vector points away from the one before; that of the first is given."""
    turns = np.where((vectors[1:] * vectors[:-1]).sum(axis=1) < 0, -1.0, 1.0)
    signs: Table = np.cumprod(np.concatenate([[first], turns])).astype(np.float64)
    return signs[:, None]
