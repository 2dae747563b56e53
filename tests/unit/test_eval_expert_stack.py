"""The stacking expert against a simulator without physics: phases, a cube that slips, fingers kept clear."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.expert.arm import CLOSE, OPEN
from eval.expert.scripts import demonstrate
from eval.simulator.interface import Goal
from tests.support.fake_simulator import FakeSimulator

CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=np.float64)
ON_TOP = 0.05 + 0.02


class TwoCubes(FakeSimulator):
    """A red cube of 4 cm and a green one of 5 cm; what is let go falls at once, onto green or the floor.

    Args:
        green: Where the green cube is [2].
        slips_at: Number of the step at which the red cube slips out of the hand, if it is held.
    """

    def __init__(self, green: tuple[float, float] = (0.12, 0.0), slips_at: int | None = None) -> None:
        self.green = np.array([*green, 0.025])
        self.slips_at = slips_at
        super().__init__()

    def step(self, action: NDArray[np.float64]) -> None:
        super().step(action)
        if len(self.actions) == self.slips_at:
            assert self.held
            self.cube, self.held = self.cube + np.array([0.0, 0.06, 0.0]), False
        if not self.held:
            over = np.abs(self.cube[:2] - self.green[:2]).max() < 0.025 and self.cube[2] > 0.05
            self.cube[2] = ON_TOP if over else 0.02

    @property
    def success(self) -> bool:
        return not self.held and bool(self.cube[2] == ON_TOP)

    def objects(self) -> tuple[str, ...]:
        return ("red", "green")

    def position(self, name: str) -> NDArray[np.float64]:
        return (self.cube if name == "red" else self.green).copy()

    def corners(self, name: str) -> NDArray[np.float64]:
        return self.position(name) + CORNERS * (0.02 if name == "red" else 0.025)

    def goals(self) -> tuple[Goal, ...]:
        return (Goal("stack", "red", "green"),)


def run(simulator: TwoCubes) -> NDArray[np.float64]:
    """Actions [T, 7] of the expert."""
    for action in demonstrate(simulator):
        simulator.step(action)
    return np.array(simulator.actions)


def test_it_closes_once_opens_once_and_every_action_moves() -> None:
    simulator = TwoCubes()
    actions = run(simulator)
    assert simulator.success
    grips = actions[:, 6]
    changes = np.flatnonzero(np.diff(grips))
    assert grips[[0, changes[0] + 1, -1]].tolist() == [OPEN, CLOSE, OPEN]
    assert len(changes) == 2
    assert np.linalg.norm(actions[:, :6], axis=1).min() > 1e-4, "nothing is a no-op"


def test_the_cube_is_raised_above_the_target_before_it_moves_sideways() -> None:
    simulator = TwoCubes()
    for action in demonstrate(simulator):
        if action[6] == CLOSE and simulator.held and np.abs(action[:2]).max() > 0.3:
            assert simulator.cube[2] - 0.02 > 0.05, "its bottom is above the green cube's top"
        simulator.step(action)
    assert simulator.success


def test_a_cube_that_slips_out_of_the_hand_is_grasped_again() -> None:
    undisturbed = run(TwoCubes())
    closed = np.flatnonzero(undisturbed[:, 6] == CLOSE)
    simulator = TwoCubes(slips_at=int(closed[0]) + 12)
    actions = run(simulator)
    assert simulator.success
    assert (np.diff(actions[:, 6]) > 0).sum() == 2, "it closed twice"


def test_a_cube_that_cannot_be_held_ends_the_demonstration() -> None:
    class Slippery(TwoCubes):
        def step(self, action: NDArray[np.float64]) -> None:
            place = self.cube.copy()
            super().step(action)
            self.cube, self.held = place, False

    simulator = Slippery()
    actions = run(simulator)
    assert not simulator.success
    assert (np.diff(actions[:, 6]) > 0).sum() == 3, "three attempts"


@pytest.mark.parametrize(
    ("green", "turns"), [((0.08, 0.0), False), ((0.0, 0.08), True), ((0.0, 0.14), False)]
)
def test_fingers_turn_only_where_one_would_come_down_on_the_target(
    green: tuple[float, float], turns: bool
) -> None:
    actions = run(TwoCubes(green))
    assert bool(np.abs(actions[:, 3:6]).max() > 0.1) == turns
