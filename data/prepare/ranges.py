"""The ranges over which the actions and states of a data set are quantised: named, explicit or measured."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from data.config import PrepareConfig, Ranges
from data.contracts import DEFAULT_EMBODIMENT, Embodiment, Statistics
from data.errors import InputError
from data.storage.index import StateRanges
from data.tokens.action import NAMED_RANGES, ActionRanges
from data.tokens.state import check_state_ranges

_LOG = logging.getLogger(__name__)
_CLIPPED_SHARE = 0.001  # of the training actions; less is not reported
_LEAST_RANGE = 1e-3  # of a state's number, in its own units
_ROUNDING = 1e-6  # of actions on the edges of their ranges, that were float32 once


def check_range_settings(config: PrepareConfig) -> None:
    """Refuse explicit ranges that are not finite pairs in order, whatever the robot (InputError)."""
    pairs = {
        "action": (config.action_minimum, config.action_maximum),
        "state": (config.state_minimum, config.state_maximum),
    }
    for name, (minimum, maximum) in pairs.items():
        if (minimum is None) != (maximum is None):
            raise InputError(f"{name}_minimum and {name}_maximum belong together; give both or none")
    explicit_ranges(config)
    _explicit_state_ranges(config)


def check_ranges(config: PrepareConfig, robot: Embodiment) -> None:
    """Refuse ranges of another number of numbers than the robot's actions and states have (InputError)."""
    chosen_ranges(config, robot)
    explicit = _explicit_state_ranges(config)
    if explicit is not None and len(explicit.minimum) != robot.state_dim:
        raise InputError(
            f"state_minimum and state_maximum have {len(explicit.minimum)} numbers, a state of "
            f"{config.source} has {robot.state_dim}: {', '.join(robot.state)}"
        )


def explicit_ranges(config: PrepareConfig) -> ActionRanges | None:
    """The explicit ranges of the settings (InputError: not as many finite, increasing pairs)."""
    if config.action_minimum is None or config.action_maximum is None:
        return None
    return ActionRanges(tuple(config.action_minimum), tuple(config.action_maximum))


def chosen_ranges(config: PrepareConfig, robot: Embodiment) -> Ranges:
    """The setting `ranges`; by default WorldVLA's for LIBERO's seven numbers, else quantiles.

    Raises:
        InputError: Named or explicit ranges are not of as many numbers as the robot's actions have.
    """
    explicit = explicit_ranges(config)
    is_libero = robot.action == DEFAULT_EMBODIMENT.action
    chosen = config.ranges or ("worldvla" if is_libero else "quantiles")
    if explicit is not None and explicit.width != robot.action_dim:
        raise InputError(
            f"action_minimum and action_maximum have {explicit.width} numbers, an action of "
            f"{config.source} has {robot.action_dim}: {', '.join(robot.action)}"
        )
    if explicit is None and chosen in NAMED_RANGES and robot.action_dim != DEFAULT_EMBODIMENT.action_dim:
        raise InputError(
            f"ranges={chosen} are of {DEFAULT_EMBODIMENT.action_dim} numbers, an action of "
            f"{config.source} has {robot.action_dim}; set ranges=quantiles or ranges=extremes"
        )
    return chosen


def action_ranges(config: PrepareConfig, actions: Statistics, robot: Embodiment) -> ActionRanges:
    """The explicit ranges of the settings, the named ones, or those measured from the training actions."""
    explicit, chosen = explicit_ranges(config), chosen_ranges(config, robot)
    if explicit is not None:
        return explicit
    if chosen == "extremes":
        return ActionRanges(actions.minimum, actions.maximum)
    if chosen == "quantiles":
        return ActionRanges(actions.q01, actions.q99)
    return NAMED_RANGES[chosen]


def state_ranges(config: PrepareConfig, states: Statistics, robot: Embodiment) -> StateRanges | None:
    """The explicit ranges of the settings, or those measured from the training states.

    None where there is no state, and for LIBERO's, whose ranges the training sets, unless they are asked for.
    """
    if not robot.state_dim:
        return None
    if (explicit := _explicit_state_ranges(config)) is not None:
        return explicit
    if robot.state == DEFAULT_EMBODIMENT.state and config.state_ranges is None:
        return None
    measured = (states.q01, states.q99) if config.state_ranges == "quantiles" else None
    low, high = (np.asarray(values) for values in measured or (states.minimum, states.maximum))
    constant = high - low < _LEAST_RANGE  # a number that never changes has no range of its own
    low, high = np.where(constant, low - _LEAST_RANGE, low), np.where(constant, high + _LEAST_RANGE, high)
    return StateRanges(tuple(low.tolist()), tuple(high.tolist()))


def warn_of_clipped_actions(
    values: Iterable[NDArray[np.float64]], ranges: ActionRanges, robot: Embodiment, config: PrepareConfig
) -> None:
    """Report the shares of the training actions that lie outside their ranges and will be clipped to them.

    Quantiles leave out 2 % on purpose; of them only those are reported that make a number that changes
    constant, as of a gripper that is open all the time but in one step of a hundred.
    """
    explicit = explicit_ranges(config)
    are_quantiles = explicit is None and chosen_ranges(config, robot) == "quantiles"
    low, high = np.asarray(ranges.minimum) - _ROUNDING, np.asarray(ranges.maximum) + _ROUNDING
    constant = np.equal(ranges.minimum, ranges.maximum) & robot.present
    if are_quantiles and not constant.any():
        return
    steps, outside = 0, np.zeros(robot.action_dim, np.int64)
    for table in values:
        steps += len(table)
        outside += ((table < low) | (table > high)).sum(axis=0)
    reported = robot.present & (outside > 0)
    reported &= constant if are_quantiles else outside >= _CLIPPED_SHARE * steps
    shares = [
        f"{name} {100 * count / steps:.1f} % outside {ranges.minimum[d]:g} .. {ranges.maximum[d]:g}"
        for d, (name, count) in enumerate(zip(robot.action, outside.tolist(), strict=True))
        if reported[d]
    ]
    if not shares:
        return
    if are_quantiles:
        remedy = "set ranges=extremes, or action_minimum and action_maximum"
    elif explicit is None:
        remedy = "set ranges=quantiles, or convert the actions"
    else:
        remedy = "widen action_minimum and action_maximum, or leave both out and set ranges=quantiles"
    _LOG.warning(
        "%s: training actions outside their ranges become the outermost bins: %s; %s",
        config.source,
        ", ".join(shares),
        remedy,
    )


def _explicit_state_ranges(config: PrepareConfig) -> StateRanges | None:
    minimum, maximum = config.state_minimum, config.state_maximum
    if minimum is None or maximum is None:
        return None
    check_state_ranges(minimum, maximum, len(minimum), "state_minimum with state_maximum")
    return StateRanges(tuple(minimum), tuple(maximum))
