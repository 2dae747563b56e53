"""A recorded demonstration played back in a robosuite environment, by the calls of robomimic."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def play_back(environment: Any, model: str, state: NDArray[np.float64], actions: NDArray[np.float64]) -> None:
    """Set a model (XML) and a first state (flattened), and take all actions float64 [T, 7]."""
    environment.reset_from_xml_string(model)
    environment.sim.reset()
    environment.sim.set_state_from_flattened(state)
    environment.sim.forward()
    for action in actions:
        environment.step(action)
