"""Which parts a command line means, and the time that those to do will take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import get_args

from benchmarks.learning.parts import Part, Stage
from data.errors import InputError

_STAGES = get_args(Stage)


def select(parts: Sequence[Part], words: Sequence[str]) -> list[Part]:
    """The parts that words name, in their order; without words all.

    Args:
        parts: All parts.
        words: Names of stages, and `key=value[,value...]` of labels (`task=lift variant=chunk,chunk_mask`);
            the values of a key that is given twice add up.

    Raises:
        InputError: A word that is unknown, or words that no part has.
    """
    stages = [word for word in words if "=" not in word]
    for stage in stages:
        if stage not in _STAGES:
            raise InputError(f"{stage!r}: no stage, expected some of {', '.join(_STAGES)}, or key=value")
    wanted: dict[str, set[str]] = defaultdict(set)
    for word in words:
        key, equals, values = word.partition("=")
        if equals:
            wanted[key] |= (named := set(values.split(",")))
            known = {part.labels[key]: None for part in parts if key in part.labels}
            if unknown := sorted(named - known.keys()):
                raise InputError(
                    f"{word}: no part has {key}={unknown[0]}, expected {_expected(known, parts)}"
                )
    found = [
        part
        for part in parts
        if (not stages or part.stage in stages)
        and all(part.labels.get(key) in values for key, values in wanted.items())
    ]
    if not found:
        raise InputError(f"{' '.join(words)}: no part of the study; --list has all of them")
    return found


def with_needs(parts: Sequence[Part], selected: Sequence[Part]) -> list[Part]:
    """The selected parts and all that they need, in the order of `parts`."""
    names: set[str] = set()

    def add(part: Part) -> None:
        if part.name not in names:
            names.add(part.name)
            for need in part.needs:
                add(need)

    for part in selected:
        add(part)
    return [part for part in parts if part.name in names]


def seconds_left(parts: Sequence[Part], jobs: int) -> tuple[float, int]:
    """The time that the parts that are not done will take, by that of those that are.

    Args:
        parts: The parts in question; those that are done tell the time.
        jobs: Parts that run at a time.

    Returns:
        Seconds, and the number of parts to do of a stage of which none is done, which are not in it.
    """
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    sizes: dict[tuple[str, str], list[float]] = defaultdict(list)
    to_do: list[Part] = []
    for part in parts:
        marker = part.read_marker()
        kind = part.stage, part.labels["task"]
        if part.state() == "done" and marker is not None:
            rates[kind].append(marker["seconds"] / marker["size"])
            sizes[kind].append(marker["size"])
        else:
            to_do.append(part)
    seconds, unknown = 0.0, 0
    for part in to_do:
        kind = part.stage, part.labels["task"]
        if kind in rates:
            seconds += fmean(rates[kind]) * fmean(sizes[kind]) / (1 if part.alone else jobs)
        else:
            unknown += 1
    return seconds, unknown


def _expected(known: dict[str, None], parts: Sequence[Part]) -> str:
    if known:
        return f"some of {', '.join(known)}"
    return f"one of the keys {', '.join(dict.fromkeys(key for part in parts for key in part.labels))}"
