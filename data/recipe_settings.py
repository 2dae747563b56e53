"""Settings that say how features of a data set become steps: parts, what is done to them, what is kept.

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
"""The operations of `data.sources.parts.operations`."""

QuaternionOrder = Literal["xyzw", "wxyz"]
"""Order of a quaternion's numbers; `w` is its real part."""


@dataclass
class Operation:
    """One operation and its parameters; null: the operation's own default, or it has no such parameter.

    Attributes:
        name: Which one; `data.sources.parts.operations` says what each does.
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


@dataclass
class SuccessConfig:
    """Which episodes are kept for their success; both null: all (RLDS only).

    Attributes:
        feature: A feature of each step, or (`episode_metadata/...`) of the episode: a number or boolean that
            is not zero in the last step of a successful episode, or a text.
        contains: Of a text: a word that it contains if the episode was successful.
    """

    feature: str | None = None
    contains: str | None = None


@dataclass
class KeepRangesConfig:
    """Ranges of steps to keep of each episode; each range becomes an episode of its own (RLDS only).

    Attributes:
        file: A JSON file, key of an episode -> list of [first step, end), as DROID's published one; an
            episode that it does not name is left out. Null: all steps are kept.
        key: Features (texts of the episode) that are its key there, joined by `--`; empty: the key that the
            episode has here (`train/episode_000000`).
    """

    file: str | None = None
    key: list[str] = field(default_factory=list[str])
