"""From features of a data set to actions and states: which parts there are, and what their numbers mean."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.contracts import DEFAULT_EMBODIMENT, Embodiment
from data.errors import InputError
from data.recipe_settings import Part
from data.sources.no_ops import NoOpRule
from data.sources.parts.array_checks import finite_float64, join_action, join_state
from data.sources.parts.feature_names import choose_parts
from data.sources.parts.operations import Step, resolve

Side = Literal["action", "state"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NumbersFeature:
    """A feature of numbers.

    Attributes:
        width: Numbers in a step; 0 where steps differ, or it is not known.
        names: Of the numbers, as the data set itself calls them; empty: it does not.
    """

    width: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _ResolvedPart:
    """A part whose operations and dimensions are known."""

    feature: str
    steps: tuple[Step, ...]
    selects: int  # of the steps, at the beginning: other columns need not be numbers
    own_names: tuple[str, ...]  # of the settings, else of the data set; empty: none
    named: bool  # whether by the settings
    width: int  # of the result


@dataclass(frozen=True, slots=True)
class StepParts:
    """The parts of a data set's actions and states.

    Attributes:
        actions, states: Features that are read, in the order of the numbers.
        embodiment: What the numbers mean.
        no_ops: Which steps are no-ops.
    """

    embodiment: Embodiment
    no_ops: NoOpRule
    actions: tuple[_ResolvedPart, ...] = field(repr=False)
    states: tuple[_ResolvedPart, ...] = field(repr=False)
    _missing: tuple[int, ...] = field(repr=False, default=())

    @property
    def features(self) -> list[str]:
        """Names of all features of the parts, each once."""
        return list(dict.fromkeys(part.feature for part in (*self.actions, *self.states)))

    def read(
        self, numbers: Callable[[str], NDArray[Any]], where: str, steps: int | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Actions float64 [T, D] and states float32 [T, S] of one episode.

        Args:
            numbers: Values [T, width] of a feature of the episode.
            where: Leads the messages.
            steps: T; None: as many as the first part of the action has.

        Raises:
            InputError: A part is of another width or length than expected, or not finite.
        """
        embodiment = self.embodiment
        parts = [part_numbers(part, numbers, where) for part in self.actions]
        length = len(parts[0]) if steps is None else steps
        if not length:
            raise InputError(f"{where}: no time steps, expected at least one; export the data set again")
        names = [part.feature for part in self.actions]
        actions = join_action(parts, names, len(embodiment.action), where, length)
        if self._missing:
            actions[:, list(self._missing)] = 0.0
        states = [part_numbers(part, numbers, where) for part in self.states]
        names = [part.feature for part in self.states]
        return actions, join_state(states, names, len(embodiment.state), where, length)


def part_numbers(part: _ResolvedPart, numbers: Callable[[str], NDArray[Any]], where: str) -> NDArray[Any]:
    """The numbers [T, D] of a part after its operations (InputError: not finite, or they do not fit)."""
    values = numbers(part.feature)
    if not part.steps or values.dtype.kind not in "fiu" or not len(values):
        return values
    table = values.astype(np.float64)
    for number, step in enumerate(part.steps):
        if number == part.selects:
            table = finite_float64(table, part.feature, where)
        try:
            table = step(table)
        except InputError as error:
            raise InputError(f"{where}: {part.feature}: {error}") from None
    return table


def resolve_parts(
    config: SourceConfig,
    available: Mapping[str, Mapping[str, NumbersFeature]],
    usual: Mapping[str, Sequence[str]],
    where: str,
    robot: str,
    control_hz: float | None = None,
) -> StepParts:
    """Find the parts that the settings name, and what their numbers mean.

    Args:
        config: The settings.
        available: Features that may be parts, of the `action` and of the `state`.
        usual: Names of a whole action and a whole state, where the settings name none.
        where: Leads the messages.
        robot: Name of an embodiment that is not the default one.
        control_hz: Steps a second of such an embodiment; None: unknown.

    Raises:
        InputError: A part is missing, its operations do not fit, or there are too many or too few numbers.
    """
    if config.control_hz is not None and not 0 < config.control_hz < math.inf:
        raise InputError(f"control_hz={config.control_hz:g}: expected steps a second, above 0")
    actions = _resolved("action", config.action, available["action"], usual["action"], where)
    states = _resolved("state", config.state, available["state"], usual["state"], where)
    action = _names(actions, "a", DEFAULT_EMBODIMENT.action)
    of_default = action == DEFAULT_EMBODIMENT.action
    if of_default:
        _warn_of_other_names(actions, where)
    state = _names(states, "s", DEFAULT_EMBODIMENT.state if of_default else ())
    plain = of_default and not config.missing and config.embodiment is None and config.control_hz is None
    if plain and (not states or state == DEFAULT_EMBODIMENT.state):
        state = DEFAULT_EMBODIMENT.state
        embodiment = DEFAULT_EMBODIMENT
    else:
        embodiment = Embodiment(
            config.embodiment or robot, action, state, tuple(config.missing), config.control_hz or control_hz
        )
    return StepParts(
        embodiment,
        NoOpRule.of(embodiment.action, config.no_ops),
        actions,
        states,
        tuple(embodiment.action.index(name) for name in embodiment.missing),
    )


def _warn_of_other_names(parts: Sequence[_ResolvedPart], where: str) -> None:
    """Say so where seven numbers that the data set calls otherwise are taken for a movement x y z ..."""
    own = [name for part in parts for name in part.own_names]
    if not own or any(part.named for part in parts):
        return
    begins_alike = all(name.lower().endswith(axis) for name, axis in zip(own, "xyz", strict=False))
    if not begins_alike:
        _LOG.warning(
            "%s: the numbers of the action, in the data set %s, are taken for %s; if they are joints or "
            "others, name them: action=[{name: %s, dimensions: [...]}]",
            where,
            ", ".join(own),
            ", ".join(DEFAULT_EMBODIMENT.action),
            parts[0].feature,
        )


def _resolved(
    side: Side,
    requested: Sequence[str | Part] | None,
    available: Mapping[str, NumbersFeature],
    usual: Sequence[str],
    where: str,
) -> tuple[_ResolvedPart, ...]:
    parts = None if requested is None else [Part(p) if isinstance(p, str) else p for p in requested]
    names = None if parts is None else [part.name for part in parts]
    chosen = choose_parts(list(available), names, usual, side, where)
    parts = parts or [Part(name) for name in chosen]
    return tuple(_resolve_part(side, part, available[part.name], where) for part in parts)


def _resolve_part(side: Side, part: Part, feature: NumbersFeature, where: str) -> _ResolvedPart:
    place = f"{where}: {side} {part.name}"
    steps = tuple(resolve(part.do, place))
    width = feature.width
    if steps and width:
        table = np.ones((1, width))
        for step in steps:
            try:
                table = step(table)
            except InputError as error:
                raise InputError(f"{place}: {error}") from None
        width = table.shape[1]
    if not width and part.dimensions is None:
        raise InputError(
            f"{place}: steps have no fixed number of numbers; select some and name them: "
            f"{side}=[{{name: {part.name}, do: [...], dimensions: [...]}}]"
        )
    if part.dimensions is not None and width and len(part.dimensions) != width:
        raise InputError(
            f"{place}: {width} numbers, but {len(part.dimensions)} dimensions "
            f"({', '.join(part.dimensions)}); name each number"
        )
    own = feature.names if not steps and len(feature.names) == width else ()
    names = own if part.dimensions is None else tuple(part.dimensions)
    others = [each if isinstance(each, str) else each.name for each in part.do] + [""]
    selects = next(number for number, name in enumerate(others) if name != "select")
    return _ResolvedPart(part.name, steps, selects, names, part.dimensions is not None, width or len(names))


def _names(parts: Sequence[_ResolvedPart], letter: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the numbers of all parts: given, the default ones, the data set's own, or counted."""
    width = sum(part.width for part in parts)
    if not any(part.named for part in parts) and width == len(default):
        return default
    names: list[str] = []
    for part in parts:
        first = len(names)
        names += part.own_names or (f"{letter}{first + column}" for column in range(part.width))
    given = any(part.named for part in parts)
    if len(set(names)) == len(names) or given:
        return tuple(names)
    return tuple(f"{letter}{column}" for column in range(width))
