"""What a hard reset left is repeated: samples, arrays of the model, and how often the solver has run."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from eval.simulator.libero.hard_reset import RepeatableReset


class Sampler:
    def sample(self, *placed: object) -> float:
        return float(np.random.uniform())


class Sim:
    def __init__(self) -> None:
        arrays = {name: np.zeros(3) for name in ("body_pos", "body_quat", "geom_rgba", "site_rgba")}
        self.model = SimpleNamespace(_model=SimpleNamespace(**arrays))
        self.solved: list[np.ndarray] = []

    def reset(self) -> None:
        self.solved = []

    def forward(self) -> None:
        self.solved.append(self.model._model.body_pos.copy())


class Environment:
    """Places a fixture in the model and an object in the state, as LIBERO's environments do."""

    def __init__(self) -> None:
        self.hard_reset = False
        self.object_property_initializers: list[Sampler] = []
        self.builds = 0
        self._build()

    def _initialize_sim(self) -> None:
        self.sim = Sim()
        self.sim.forward()
        self.sim.forward()

    def _build(self) -> None:
        self.builds += 1
        self.placement_initializer, self.conditional_placement_initializer = Sampler(), Sampler()
        self.conditional_placement_on_objects_initializer = Sampler()
        self.object_property_initializers.append(Sampler())
        self._initialize_sim()

    def reset(self) -> None:
        if self.hard_reset:
            self._build()
        else:
            self.sim.reset()
        self.drawers = [sampler.sample() for sampler in self.object_property_initializers]
        self.sim.model._model.body_pos[:] = self.placement_initializer.sample()
        self.object = self.conditional_placement_initializer.sample("placed")
        self.sim.forward()


def seen(environment: Environment) -> list[Any]:
    model = environment.sim.model._model
    return [environment.drawers, environment.object, model.body_pos.tolist(), model.site_rgba.tolist()]


def once(reset: Callable[[], Any]) -> None:
    reset()


def test_a_repeated_reset_leaves_what_the_hard_one_left() -> None:
    environment = Environment()
    hard = RepeatableReset(environment, once)
    first, solved = seen(environment), [each.tolist() for each in environment.sim.solved]
    assert environment.builds == 2
    assert not environment.hard_reset
    for _ in range(2):
        environment.reset()  # a soft reset, for an episode of another placement
        environment.sim.model._model.site_rgba[:] = 1.0  # a stove was lit
        assert seen(environment) != first
        hard.repeat()
        assert seen(environment) == first
        assert [each.tolist() for each in environment.sim.solved] == solved
    assert environment.builds == 2
    assert "reset" not in vars(environment.sim)


def test_a_hard_reset_that_finds_no_places_is_tried_again_and_the_last_one_counts() -> None:
    environment = Environment()

    def twice(reset: Callable[[], Any]) -> None:
        reset()
        reset()

    hard = RepeatableReset(environment, twice)
    first = seen(environment)
    environment.reset()
    hard.repeat()
    assert seen(environment) == first
    assert environment.builds == 3
