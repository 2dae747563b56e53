"""Which steps of an episode are kept: all but the first, or ranges that a file names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from data.config import DropFirst
from data.errors import InputError
from data.json_record import read_json_object

RANGE_MARK = "_steps_"
"""Between the key of an episode and a range of its steps, in the key of that range."""

_REMEDY = "expected episodes with lists of [first step, end), as DROID's published file"


@dataclass(frozen=True, slots=True)
class StepRange:
    """Steps `begin` to `end` (exclusive) of an episode.

    As text (`"12-40"`) it is part of a reference's `item`.
    """

    begin: int
    end: int

    @classmethod
    def parse(cls, text: str) -> StepRange:
        """Of `str(range)`."""
        begin, _, end = text.partition("-")
        return cls(int(begin), int(end))

    def __str__(self) -> str:
        return f"{self.begin}-{self.end}"

    def cut(self, values: NDArray[Any]) -> NDArray[Any]:
        """These steps of an array [T, ...]."""
        return values[self.begin : self.end]


def range_item(place: int, kept: StepRange) -> str:
    """The `item` of a reference to some steps of the episode at a place of its file."""
    return f"{place}:{kept}"


def parse_item(item: str) -> tuple[int, StepRange | None]:
    """The place of an episode in its file, and the steps of it that a reference is of; None: all."""
    place, _, kept = item.partition(":")
    return int(place), StepRange.parse(kept) if kept else None


def read_keep_ranges(path: Path) -> dict[str, tuple[StepRange, ...]]:
    """Ranges by the key of an episode.

    Raises:
        InputError: The file is missing or damaged, or a range is none: negative, empty, or not after the one
            before it.
    """
    found: dict[str, tuple[StepRange, ...]] = {}
    for key, ranges in read_json_object(path, _REMEDY).items():
        end = 0
        kept: list[StepRange] = []
        listed: list[Any] = _listed(ranges) if isinstance(ranges, list) else [ranges]
        for each in listed:
            pair = _listed(each)
            if len(pair) != 2 or not all(type(side) is int for side in pair) or not end <= pair[0] < pair[1]:
                raise InputError(f"{path}: {key[:200]!r} has the range {str(each)[:40]}; {_REMEDY}, in order")
            end = pair[1]
            kept.append(StepRange(*pair))
        found[key] = tuple(kept)
    return found


def _listed(value: Any) -> list[Any]:
    """A list as it is; empty for anything else."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def kept_ranges(
    actions: NDArray[np.float64],
    drop_first: DropFirst,
    ranges: Mapping[str, Sequence[StepRange]] | None,
    key: str,
    where: str,
) -> list[StepRange]:
    """Ranges of an episode's steps that are kept; none where the file does not name it.

    Args:
        actions: Of the episode, [T, D].
        drop_first: The setting.
        ranges: Of `read_keep_ranges`; None: all steps are kept.
        key: Of the episode in `ranges`.
        where: Leads the messages.

    Raises:
        InputError: A range ends after the episode, or only the first step is left out of an episode of one.
    """
    steps = len(actions)
    first = int(drop_first == "always" or (drop_first == "zero" and not actions[0].any()))
    if first == steps:
        raise InputError(f"{where}: nothing is left without its first step; delete this demonstration")
    if ranges is None:
        return [StepRange(first, steps)]
    kept = ranges.get(key, ())
    if kept and kept[-1].end > steps:
        raise InputError(
            f"{where}: keep_ranges names the steps {kept[-1]} of an episode of {steps}; the file is "
            "for another version of the data set"
        )
    return [StepRange(max(each.begin, first), each.end) for each in kept if each.end > first]
