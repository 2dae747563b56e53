"""What LIBERO's and robosuite's own scripts observe: the moment at which robosuite samples its sensors.

A control step of 50 ms is 25 substeps of physics. robosuite samples once in it, by a clock that every forced
update of the sensors shifts by one substep: in the last substep after a reset, in the last but one after
LIBERO's `set_init_state`. Body poses at that moment are those of before the substep. So frames and poses are
2 ms (robosuite) or 4 ms (LIBERO) older than the state at the end of the step, finger positions 0 or 2 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DATA = (
    "qpos",
    "xpos",
    "xquat",
    "xmat",
    "geom_xpos",
    "geom_xmat",
    "site_xpos",
    "site_xmat",
    "cam_xpos",
    "cam_xmat",
    "light_xpos",
    "light_xdir",
)
_MODEL = ("geom_rgba", "site_rgba")  # LIBERO shows a burning stove by them


class SampledMoment:
    """Everything that frames and proprioception depend on, as it was when robosuite last sampled its sensors.

    A sensor of its own among the environment's copies it; physics is not changed.

    Args:
        environment: A robosuite `MujocoEnv`; it must be reset before the next step.
    """

    def __init__(self, environment: Any) -> None:
        from robosuite.utils.observables import Observable, sensor

        self._environment = environment
        self._sampled: list[NDArray[Any]] = []

        @sensor(modality="moment")
        def moment(cache: Any) -> float:
            self._sampled = [array.copy() for array in self._arrays()]
            return 0.0

        environment.add_observable(
            Observable("moment", sensor=moment, sampling_rate=environment.control_freq, active=False)
        )

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Let the simulation's data show the sampled moment inside the block, afterwards the present one."""
        arrays = self._arrays()
        present = [array.copy() for array in arrays]
        _assign(arrays, self._sampled)
        try:
            yield
        finally:
            _assign(arrays, present)

    def _arrays(self) -> list[NDArray[Any]]:
        sim = self._environment.sim
        data, model = sim.data._data, sim.model._model
        return [getattr(data, name) for name in _DATA] + [getattr(model, name) for name in _MODEL]


def _assign(arrays: list[NDArray[Any]], values: list[NDArray[Any]]) -> None:
    for array, value in zip(arrays, values, strict=True):
        np.copyto(array, value)
