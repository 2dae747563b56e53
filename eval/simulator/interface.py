"""What the rest of the house knows about a simulator: one task, numbered initial states, poses.

Everything that knows robosuite, LIBERO or MuJoCo is behind this interface (`registry.open_suite`).
Lengths are metres, angles radians, the world's z axis points up. Numbers below
`EVALUATION_STATES` name the initial states that evaluation uses (the suite's fixed ones); numbers
from `COLLECTION_STATES` on are free for demonstrations, so that the two never meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

EVALUATION_STATES = 50
COLLECTION_STATES = 1000
SETTLE_STEPS = 10
SETTLE_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
ACTION_SIZE = 7
ACTION_LIMIT = 1.0  # of every dimension; the controllers cut what is beyond


class SimulatorError(Exception):
    """The simulator itself broke down: not the policy's failure, and reported apart."""


@dataclass(frozen=True, slots=True)
class Pose:
    """Position [3] and rotation matrix [3, 3] of a frame in the world."""

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Goal:
    """One condition of the task, as LIBERO's BDDL writes it: ``(on bowl_1 plate_1)``.

    Attributes:
        predicate: `lift`, `on`, `in`, or another one that the expert does not know.
        subject: Name of the object that is to be moved.
        target: Name of an object or site; empty for `lift`.
    """

    predicate: str
    subject: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """One task of a suite.

    Attributes:
        suite: Name of the suite.
        number: Position within the suite.
        name: Identifier, also the stem of its demonstration file.
        instruction: What the robot is told, the same text in training and in evaluation.
        horizon: Longest episode in steps, the settling steps not counted.
        environment: Class name of the simulator's environment, for the demonstration's attributes.
        problem_file: BDDL file of the task; empty where the suite has none.
    """

    suite: str
    number: int
    name: str
    instruction: str
    horizon: int
    environment: str
    problem_file: str = ""


class Simulator(Protocol):
    """One task in one process. Not thread safe; several may live side by side."""

    @property
    def task(self) -> TaskInfo:
        """The task this simulator runs."""
        ...

    def reset(self, initial_state: int) -> None:
        """Start an episode from a numbered initial state, with the settling steps already done.

        The same number gives the same episode, whatever ran before.
        """
        ...

    def replay_from(self, flat_state: NDArray[np.float64], initial_state: int) -> None:
        """Start an episode from a stored physical state the way published replays do.

        Reset to `initial_state`, overwrite the physical state, then the settling steps.
        """
        ...

    def step(self, action: NDArray[np.float64]) -> None:
        """Apply one action [7]: delta position, delta rotation, gripper (-1 open, 1 close).

        Raises:
            SimulatorError: The physics became unstable.
        """
        ...

    @property
    def success(self) -> bool:
        """Whether the task is solved in the present state."""
        ...

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        """The upright view [pixels, pixels, 3] of `AGENT_CAMERA` or `WRIST_CAMERA`."""
        ...

    def state(self) -> NDArray[np.float64]:
        """Proprioception [8]: gripper position, axis-angle, finger positions."""
        ...

    def joints(self) -> NDArray[np.float64]:
        """Angles [7] of the arm."""
        ...

    def sim_state(self) -> NDArray[np.float64]:
        """Time, positions and velocities of the physics, flat, as robomimic stores them."""
        ...

    def set_sim_state(self, flat_state: NDArray[np.float64]) -> None:
        """Put the physics into a state of `sim_state` (for rendering it, not for stepping on)."""
        ...

    def model_xml(self) -> str:
        """The MuJoCo model, for the demonstration's `model_file` attribute."""
        ...

    # What only the scripted expert may look at.

    def gripper(self) -> Pose:
        """Pose of the point between the finger tips; z points out of the hand."""
        ...

    def finger_axis(self) -> NDArray[np.float64]:
        """Unit axis [3] in the gripper's frame along which the fingers open."""
        ...

    def objects(self) -> tuple[str, ...]:
        """Names of the movable objects."""
        ...

    def bodies(self) -> tuple[str, ...]:
        """Names of everything that has collision geometry: movable objects and fixtures."""
        ...

    def position(self, name: str) -> NDArray[np.float64]:
        """Position [3] of an object's or site's own frame."""
        ...

    def corners(self, name: str) -> NDArray[np.float64]:
        """World positions [N, 3] of the corners of an object's or fixture's collision boxes."""
        ...

    def goals(self) -> tuple[Goal, ...]:
        """The conditions of the task, in order."""
        ...

    def close(self) -> None:
        """Free the simulator; it cannot be used afterwards."""
        ...


class Suite(Protocol):
    """A set of tasks."""

    @property
    def name(self) -> str:
        """Name under which `open_suite` knows it."""
        ...

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """All tasks, in the suite's order."""
        ...

    @property
    def standin_assets(self) -> bool:
        """Whether some visual assets are stand-ins, so that success is not comparable to the digit."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the simulator's packages."""
        ...

    def open(self, task: int) -> Simulator:
        """Build the simulator of a task (seconds).

        Raises:
            InputError: Renderer or assets are missing.
        """
        ...
