"""A policy's observations in an episode of fixed actions, for comparison with those of foreign loops."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from eval.simulator.interface import Simulator

_RANDOM = np.random.default_rng(0)
ACTIONS = [np.array([*_RANDOM.uniform(-1, 1, 6), grip]) for grip in (-1.0, 1.0, -1.0, 1.0)]
"""Fast motions of the hand and the fingers."""


def observed(
    simulator: Simulator, initial_state: int, pixels: int
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]]:
    """Agent view, wrist view and state after the reset and after each of `ACTIONS`."""
    simulator.reset(initial_state)
    for action in [None, *ACTIONS]:
        if action is not None:
            simulator.step(action)
        yield simulator.render("agent", pixels), simulator.render("wrist", pixels), simulator.state()
