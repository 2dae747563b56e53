"""Interface of simulators: one task, numbered initial states, poses.

All code that uses robosuite, LIBERO or MuJoCo is behind this interface (`registry.open_suite`).
Lengths are metres, angles radians, the world's z axis points up. Numbers below
`EVALUATION_STATES` are the initial states of evaluation (the suite's fixed ones); numbers from
`COLLECTION_STATES` on are those of demonstrations, so that the two are disjoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA, DEFAULT_EMBODIMENT, WRIST_CAMERA
from eval.config import Observations, Reset

CAMERAS = (AGENT_CAMERA, WRIST_CAMERA)
"""What every simulator renders."""

EVALUATION_STATES = 50
COLLECTION_STATES = 1000
SETTLE_STEPS = 10
SETTLE_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
EMBODIMENT = DEFAULT_EMBODIMENT
"""The numbers of the actions that every simulator takes, and of the states that it shows."""

ACTION_SIZE = EMBODIMENT.action_dim
CONTROL_FREQUENCY = 20  # steps in a second of simulated time
ACTION_LIMIT = 1.0  # of every dimension; the controllers clip to it


class SimulatorError(Exception):
    """The simulator itself failed: reported apart from failures of the policy."""


@dataclass(frozen=True, slots=True)
class Pose:
    """Position [3] and rotation matrix [3, 3] of a frame in the world."""

    position: NDArray[np.float64]
    rotation: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Goal:
    """One condition of the task, as LIBERO's BDDL writes it: ``(on bowl_1 plate_1)``.

    Attributes:
        predicate: `lift`, `stack`, `on`, `in`, or another one that the expert does not know.
        subject: Name of the object to move.
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
        instruction: The task in words, the same text in training and in evaluation.
        horizon: Maximum length of an episode in steps, without the settling steps.
        environment: Class name of the simulator's environment, for the demonstration's attributes.
        problem_file: BDDL file of the task; empty where the suite has none.
        category: What a robustness suite changes in it (`camera`, `language`); empty in other suites.
        initial_states: Number of its fixed initial states.
    """

    suite: str
    number: int
    name: str
    instruction: str
    horizon: int
    environment: str
    problem_file: str = ""
    category: str = ""
    initial_states: int = EVALUATION_STATES


def problem_file_in_package(task: TaskInfo) -> str:
    """The task's BDDL file from LIBERO's package on: `bddl_files/<suite>/<task>.bddl`; empty without one."""
    return "/".join(Path(task.problem_file).parts[-3:])


class Simulator(Protocol):
    """One task in one process. Not thread safe; a process may hold several."""

    @property
    def task(self) -> TaskInfo:
        """The task this simulator runs."""
        ...

    def reset(self, initial_state: int) -> None:
        """Start an episode from a numbered initial state, with the settling steps already done.

        The same number gives the same episode, independent of previous episodes.
        """
        ...

    def replay_from(self, flat_state: NDArray[np.float64], initial_state: int) -> None:
        """Start an episode from a stored physical state, as published replays do.

        Reset to `initial_state`, overwrite the physical state, then take the settling steps.

        Args:
            flat_state: float64 [D], as of `sim_state`.
            initial_state: Number of the initial state.
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
        """Whether the task is solved in the current state."""
        ...

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        """The upright view uint8 [pixels, pixels, 3] of one of `CAMERAS`."""
        ...

    def state(self) -> NDArray[np.float64]:
        """Proprioception float64 [8]: gripper position [3], axis times angle [3], finger positions [2].

        The orientation is the hand body's, as LIBERO records it, and continuous over an episode: its angle
        may exceed pi.
        """
        ...

    def joints(self) -> NDArray[np.float64]:
        """Joint angles float64 [7] of the arm."""
        ...

    def sim_state(self) -> NDArray[np.float64]:
        """Physical state float64 [D]: time, positions and velocities, flat, as robomimic stores them.

        D = 1 + number of positions + number of velocities of the task's MuJoCo model.
        """
        ...

    def set_sim_state(self, flat_state: NDArray[np.float64]) -> None:
        """Set the physical state float64 [D], as of `sim_state` (to render it, not to step on from it)."""
        ...

    def model_xml(self) -> str:
        """The MuJoCo model, for the demonstration's `model_file` attribute."""
        ...

    def environment_arguments(self) -> dict[str, Any]:
        """Arguments by which `robosuite.make(task.environment, ...)` builds this environment, for `env_args`.

        Values of JSON; a path is relative to LIBERO's package.
        """
        ...

    # For the scripted expert alone.

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
        """Name for `open_suite`."""
        ...

    @property
    def tasks(self) -> tuple[TaskInfo, ...]:
        """All tasks, in the suite's order."""
        ...

    @property
    def standin_assets(self) -> bool:
        """Whether some visual assets are stand-ins, so that success rates are not exactly comparable."""
        ...

    @property
    def default_reset(self) -> Reset:
        """How an episode starts unless the settings say otherwise."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Caveats of the suite's results."""
        ...

    def renderer(self) -> str:
        """Backend and vendor of the renderer; frames depend on both."""
        ...

    def versions(self) -> dict[str, str]:
        """Versions of the simulator's packages."""
        ...

    def open(
        self, task: int, observations: Observations = "recomputed", reset: Reset | None = None
    ) -> Simulator:
        """Build the simulator of a task (seconds).

        Args:
            task: Its number.
            observations: What frames and proprioception show; see `eval.config.EvaluationSettings`.
            reset: How an episode starts, from a fixed initial state; None: `default_reset`.

        Raises:
            InputError: Renderer or assets are missing.
        """
        ...
