"""Hard resets at the price of soft ones: what the first hard reset left, restored to the last bit.

A hard reset of robosuite builds the model anew from XML (2 s) and samples the places of all objects. With one
seed it leaves the same each time but for three things, which are repeated here instead:

- arrays of the model that episodes change: the places of fixtures, colours that show a lit stove;
- the samples themselves. LIBERO's environments add a sampler to a list at every hard reset, which draws
  numbers too: from the same seed the second reset of an environment has other places than the first;
- the acceleration from which MuJoCo's solver starts, which depends on how often it has solved before. A soft
  reset has solved less often, so its states differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MODEL_ARRAYS = ("body_pos", "body_quat", "geom_rgba", "site_rgba")
_SAMPLERS = (
    "placement_initializer",
    "conditional_placement_initializer",
    "conditional_placement_on_objects_initializer",
)
# MjSim and the rendering context call `forward` once each when they are made.
_SOLVED_BEFORE = 2


class RepeatableReset:
    """Makes one hard reset of an environment, and repeats it.

    Args:
        environment: A LIBERO environment. Its own resets are soft ones from now on.
        attempt: Calls its argument, which resets the environment, until that finds places for all objects.
    """

    def __init__(self, environment: Any, attempt: Callable[[Callable[[], Any]], None]) -> None:
        self._environment = environment
        self._arrays: dict[str, NDArray[Any]] = {}
        self._samples: dict[int, Any] = {}
        self._mode = "record"
        initialize = environment._initialize_sim

        def initialize_and_record(*arguments: Any) -> None:
            initialize(*arguments)
            self._arrays = {name: array.copy() for name, array in self._model_arrays()}
            self._wrap_samplers()

        environment._initialize_sim = initialize_and_record
        environment.hard_reset = True
        try:
            attempt(environment.reset)
        finally:
            del environment._initialize_sim
        environment.hard_reset = False
        self._mode = "sample"

    def repeat(self) -> None:
        """Reset the environment to what the hard reset left."""
        with self._restored():
            self._environment.reset()

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Inside the block a soft reset restores the model and takes the recorded samples."""
        sim = self._environment.sim

        def reset() -> None:
            type(sim).reset(sim)
            for name, array in self._model_arrays():
                np.copyto(array, self._arrays[name])
            for _ in range(_SOLVED_BEFORE):
                sim.forward()

        sim.reset, self._mode = reset, "repeat"
        try:
            yield
        finally:
            del sim.reset
            self._mode = "sample"

    def _model_arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        model = self._environment.sim.model._model
        return ((name, getattr(model, name)) for name in _MODEL_ARRAYS)

    def _wrap_samplers(self) -> None:
        samplers = [getattr(self._environment, name) for name in _SAMPLERS]
        for number, sampler in enumerate([*samplers, *self._environment.object_property_initializers]):
            sampler.sample = self._recorded(number, sampler.sample)

    def _recorded(self, number: int, sample: Callable[..., Any]) -> Callable[..., Any]:
        """A sampler's method that records what it returns, or repeats it."""

        def sample_or_repeat(*arguments: Any) -> Any:
            if self._mode == "repeat":
                return self._samples[number]
            result = sample(*arguments)
            if self._mode == "record":
                self._samples[number] = result
            return result

        return sample_or_repeat
