"""Settings of the parts that together are an action or a state, and of what is done to their numbers.

A part, and an operation, may be written as a text: its name alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

OperationName = Literal[
    "select",
    "scale",
    "invert",
    "clip",
    "binarise",
    "relative_to_absolute",
    "delta_from_absolute",
    "quaternion_to_axis_angle",
    "euler_to_axis_angle",
    "pad",
]
"""The operations of `data.sources.operations`."""

QuaternionOrder = Literal["xyzw", "wxyz"]
"""Order of a quaternion's numbers; `w` is its real part."""


@dataclass
class Operation:
    """One operation and its parameters; null: the operation's own default, or it has no such parameter.

    Attributes:
        name: Which one; `data.sources.operations` says what each does.
        columns: Of `select`: numbers of the columns to keep, from 0, in this order.
        factor, offset: Of `scale`: values become `factor * value + offset`.
        low, high: Of `invert`, `clip` and `binarise`: the range.
        threshold: Of `relative_to_absolute`: commands nearer to zero change nothing.
        wrap: Of `delta_from_absolute`: whether values are angles in radians, which turn the shorter way.
        order: Of `quaternion_to_axis_angle`: order of the quaternion's numbers.
        width: Of `pad`: number of columns of the result.
    """

    name: OperationName
    columns: list[int] | None = None
    factor: float | None = None
    offset: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float | None = None
    wrap: bool | None = None
    order: QuaternionOrder | None = None
    width: int | None = None


@dataclass
class Part:
    """A part of an action or a state: a feature of the data set, and what is done to its numbers.

    Attributes:
        name: The feature (RLDS: its path below `steps`; LeRobot: its column).
        do: Operations, the first one first.
        dimensions: Names of the numbers that come out; null: the data set's own, or `a0`, `s0`, ...
    """

    name: str
    do: list[str | Operation] = field(default_factory=list[str | Operation])
    dimensions: list[str] | None = None
