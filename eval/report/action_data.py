"""Actions that an evaluation has stored: of its rollouts, and of held-out demonstrations (open loop).

The files are read as what others may have written: of limited size, and every value checked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import MAX_ACTION_DIM
from data.errors import InputError
from eval.report.json_values import Json, integer, number, read_json, rows
from pretrain.run_layout import OPEN_LOOP_STEM

_MAX_BYTES = 32_000_000
_MAX_PICTURE_BYTES = 4_000_000
_MAX_NAME = 24  # characters
_MOST_ERROR = 1000.0  # ranges; more is no measurement

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Actions [T, D] of a policy, and of the expert at the same steps.

    Attributes:
        names: Of the D numbers.
        policy: What the policy chose.
        expert: What the expert would have done, or has done; NaN where it says nothing. None: not known.
        entropy: Of the policy's action tokens in nats, [T]; None: there is none.
    """

    names: tuple[str, ...]
    policy: Floats
    expert: Floats | None
    entropy: Floats | None


@dataclass(frozen=True)
class RolloutActions:
    """The actions of an episode.

    Attributes:
        curves: Executed actions.
        chunk: K, actions in a chunk.
        decisions: Mean entropy of each decision that was made, [N]; None: there is none.
    """

    curves: Curves
    chunk: int
    decisions: Floats | None


@dataclass(frozen=True)
class Parting:
    """A frame of a demonstration where the policy parts from the expert.

    Attributes:
        frame: Its number.
        error: Of the action, as a share of the numbers' ranges.
    """

    frame: int
    error: float


@dataclass(frozen=True)
class OpenLoop:
    """A policy on held-out demonstrations, open loop.

    Attributes:
        episode, split: Of the first demonstration.
        curves: First predicted action at each of its frames, and the recorded one.
        error: Mean error over all demonstrations, as a share of the numbers' ranges.
        constant_error: The same of the best constant action; None: not stored.
        mean_absolute_error: Of each number, in its units, [D].
        widths: Of each number's range, [D]; 1 where it is not stored, infinite where the error does not
            count: of a constant, and of what the robot lacks.
        episodes: Number of demonstrations.
        partings: Frames of the first one, ascending.
        picture: PNG of these frames; None: there is none.
    """

    episode: str
    split: str
    curves: Curves
    error: float
    constant_error: float | None
    mean_absolute_error: Floats
    widths: Floats
    episodes: int
    partings: tuple[Parting, ...]
    picture: Path | None


def read_rollout(path: Path) -> RolloutActions | None:
    """The actions of an episode (`eval.rollout.trace`); None without such a file, or of other content.

    Raises:
        InputError: The file is too large or no JSON object.
    """
    content = _read(path)
    if content is None:
        return None
    names, steps = _names(content), integer(content, "steps") or 0
    chunks = _array(content.get("chunks"), 3)
    if names is None or chunks is None or chunks.shape[2] != len(names):
        return None
    actions = chunks.reshape(-1, len(names))[:steps]
    if not len(actions):
        return None
    spread = _shaped(content.get("entropy"), chunks.shape[:2])
    expert = _shaped(content.get("expert"), actions.shape)
    return RolloutActions(
        curves=Curves(names, actions, expert, None if spread is None else spread.ravel()[:steps]),
        chunk=chunks.shape[1],
        decisions=None if spread is None else spread.mean(axis=1),
    )


def read_open_loop(folder: Path) -> OpenLoop | None:
    """An evaluation's comparison with held-out demonstrations; None without one, or of other content.

    Raises:
        InputError: The file is too large or no JSON object.
    """
    content = _read(folder / f"{OPEN_LOOP_STEM}.json")
    episodes = [] if content is None else rows(content, "episodes")
    if content is None or not episodes:
        return None
    names, first = _names(content), episodes[0]
    predicted, error = _array(first.get("predicted"), 2), _share(content, "error")
    if names is None or predicted is None or predicted.shape[1] != len(names) or error is None:
        return None
    expert = _shaped(first.get("expert"), predicted.shape)
    errors = _shaped(content.get("mean_absolute_error"), (len(names),))
    if expert is None or errors is None or not all(np.isfinite(each).all() for each in (predicted, expert)):
        return None
    picture = folder / f"{OPEN_LOOP_STEM}.png"
    return OpenLoop(
        episode=_text(first.get("episode")),
        split=_text(first.get("split")),
        curves=Curves(names, predicted, expert, _shaped(first.get("entropy"), predicted.shape[:1])),
        error=error,
        constant_error=_share(content, "constant_error"),
        mean_absolute_error=errors,
        widths=_widths(content, len(names)),
        episodes=len(episodes),
        partings=_partings(content, len(predicted)),
        picture=picture if picture.is_file() and picture.stat().st_size <= _MAX_PICTURE_BYTES else None,
    )


def _read(path: Path) -> Json | None:
    if not path.is_file():
        return None
    size = path.stat().st_size
    if size > _MAX_BYTES:
        raise InputError(f"{path}: has {size} bytes, expected at most {_MAX_BYTES}; delete it or restore it")
    return read_json(path)


def _partings(content: Json, length: int) -> tuple[Parting, ...]:
    found = [(integer(row, "frame"), _share(row, "error")) for row in rows(content, "partings")]
    return tuple(
        Parting(frame, error)
        for frame, error in found
        if frame is not None and error is not None and 0 <= frame < length
    )


def _share(values: Json, key: str) -> float | None:
    """An error as a share of ranges; None for what cannot be one."""
    value = number(values, key)
    return value if value is not None and 0 <= value <= _MOST_ERROR else None


def _widths(content: Json, count: int) -> Floats:
    low, high = (_shaped(content.get(key), (count,)) for key in ("minimum", "maximum"))
    if low is None or high is None:
        return np.ones(count)
    width, present = high - low, content.get("present")
    counted = np.isfinite(width) & (width > 0)
    if isinstance(present, list) and len(present) == count:
        counted &= np.array([item is True for item in present])
    return np.where(counted, width, np.inf)


def _names(content: Json) -> tuple[str, ...] | None:
    names = content.get("names")
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_ACTION_DIM:
        return None
    return tuple(_text(name)[:_MAX_NAME] for name in names)


def _text(value: Any) -> str:
    """A value as text that a page can hold."""
    return str(value).encode(errors="backslashreplace").decode()


def _shaped(value: Any, shape: Sequence[int]) -> Floats | None:
    """An array of this shape; None where the value is none."""
    array = _array(value, len(shape))
    return array if array is not None and array.shape == tuple(shape) else None


def _array(value: Any, dims: int) -> Floats | None:
    """Nested lists of numbers as an array; NaN for what is no finite number. None where they are no array."""
    if not isinstance(value, list) or not value:
        return None
    if dims == 1:
        return np.array([_finite(item) for item in value])
    parts = [_array(item, dims - 1) for item in value]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or len({part.shape for part in found}) > 1:
        return None
    return np.stack(found)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return math.nan
    return float(value)
