"""A simulator without physics: the gripper moves by the action, and carries the cube while it holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.simulator.interface import Goal, Pose, SimulatorError, TaskInfo

TASK = TaskInfo("fake", 0, "fake_lift", "lift the fake cube", 40, "Fake")
POINTING_DOWN = np.diag([1.0, -1.0, -1.0])
_STEP = 0.05  # m moved by an action of 1
_CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * 0.02


class FakeSimulator:
    """Solved when the cube is lifted by more than 4 cm. Records actions and rendered frames."""

    task = TASK

    def __init__(
        self, boxes: dict[str, NDArray[np.float64]] | None = None, breaks_at: int | None = None
    ) -> None:
        self.boxes = boxes
        self.breaks_at = breaks_at
        self.renders: list[tuple[int, str, int]] = []
        self.actions: list[NDArray[np.float64]] = []
        self.closed = False
        self.reset(0)

    def reset(self, initial_state: int) -> None:
        self.actions.clear()
        self.hand = np.array([0.0, 0.0, 0.2])
        self.cube = np.array([0.01 * initial_state, 0.0, 0.02])
        self.held = False

    def replay_from(self, flat_state: NDArray[np.float64], initial_state: int) -> None:
        self.reset(initial_state)
        self.set_sim_state(flat_state)

    def step(self, action: NDArray[np.float64]) -> None:
        if self.breaks_at is not None and len(self.actions) >= self.breaks_at:
            raise SimulatorError("the fake simulator failed")
        self.actions.append(np.array(action))
        self.held = action[6] > 0 and (self.held or bool(np.linalg.norm(self.hand - self.cube) < 0.02))
        self.hand = self.hand + _STEP * action[:3]
        if self.held:
            self.cube = self.cube + _STEP * action[:3]

    @property
    def success(self) -> bool:
        return bool(self.cube[2] > 0.06)

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        self.renders.append((len(self.actions), camera, pixels))
        return np.full((pixels, pixels, 3), len(self.actions), np.uint8)

    def state(self) -> NDArray[np.float64]:
        return np.concatenate([self.hand, np.zeros(5)])

    def joints(self) -> NDArray[np.float64]:
        return np.zeros(7)

    def sim_state(self) -> NDArray[np.float64]:
        return np.concatenate([self.hand, self.cube])

    def set_sim_state(self, flat_state: NDArray[np.float64]) -> None:
        self.hand, self.cube = flat_state[:3].copy(), flat_state[3:].copy()

    def model_xml(self) -> str:
        return "<mujoco/>"

    def environment_arguments(self) -> dict[str, Any]:
        return {"robots": ["Fake"]}

    def gripper(self) -> Pose:
        return Pose(self.hand.copy(), POINTING_DOWN)

    def finger_axis(self) -> NDArray[np.float64]:
        return np.array([0.0, 1.0, 0.0])

    def objects(self) -> tuple[str, ...]:
        return tuple(self.boxes) if self.boxes else ("cube",)

    def bodies(self) -> tuple[str, ...]:
        return self.objects()

    def position(self, name: str) -> NDArray[np.float64]:
        return self.boxes[name].mean(axis=0) if self.boxes else self.cube.copy()

    def corners(self, name: str) -> NDArray[np.float64]:
        return self.boxes[name] if self.boxes else self.cube + _CUBE

    def goals(self) -> tuple[Goal, ...]:
        return (Goal("lift", "cube"),)

    def close(self) -> None:
        self.closed = True


class FakeSuite:
    """A suite of its one task."""

    name, tasks, standin_assets = "fake", (TASK,), False

    def versions(self) -> dict[str, str]:
        return {"robosuite": "1.4.0"}
