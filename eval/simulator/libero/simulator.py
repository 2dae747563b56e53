"""One task of LIBERO: fixed initial states 0 to 49 for evaluation, sampled ones from 50 on for collection."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA
from data.errors import InputError
from eval.config import Observations, Reset
from eval.simulator.interface import (
    EVALUATION_STATES,
    Goal,
    SimulatorError,
    TaskInfo,
    problem_file_in_package,
)
from eval.simulator.libero.hard_reset import RepeatableReset
from eval.simulator.libero.packages import INSTALL
from eval.simulator.libero.plus_camera import CameraView, moved_camera
from eval.simulator.libero.plus_noise import NOISE_PIXELS, SensorNoise
from eval.simulator.libero.robot_posture import register_arm
from eval.simulator.panda import PandaSimulator, seeded_numpy

_MAX_PLACEMENTS = 20


@dataclass(frozen=True, slots=True)
class Variation:
    """What LIBERO-Plus changes beside a task's own file.

    Attributes:
        package: Folder of LIBERO-Plus' inner package.
        camera: Movements of the agent camera.
        arm: Number of the arm, whose initial joint angles differ; 0: LIBERO's own.
        noise: Noise on the agent camera's frames.
    """

    package: Path
    camera: CameraView
    arm: int = 0
    noise: SensorNoise | None = None


class LiberoSimulator(PandaSimulator):
    """One LIBERO task.

    Args:
        task: The task.
        initial_states: Physical states float64 [N, D] of initial states 0 to N - 1.
        observations: What frames and proprioception show; see `eval.config.EvaluationSettings`.
        reset: How an episode from a fixed initial state starts; see `eval.config.EvaluationSettings`.
        variation: What LIBERO-Plus changes.
    """

    def __init__(
        self,
        task: TaskInfo,
        initial_states: NDArray[np.float64],
        observations: Observations = "recomputed",
        reset: Reset = "hard",
        variation: Variation | None = None,
    ) -> None:
        environment = _make_environment(task, variation)
        with seeded_numpy(0):
            self._hard_reset = RepeatableReset(environment, _until_placed)
        super().__init__(environment, task, observations)
        self._initial_states, self._reset, self._variation = initial_states, reset, variation
        self._initial_state = 0

    def _place(self, initial_state: int) -> None:
        fixed = initial_state < EVALUATION_STATES
        if fixed and initial_state >= len(self._initial_states):
            raise InputError(
                f"initial state {initial_state}: {self.task.name} has {len(self._initial_states)} fixed ones"
            )
        self._initial_state = initial_state
        # A reset also places fixtures, which are not part of the physical state: one seed for all fixed
        # states gives them the same place in every episode.
        with seeded_numpy(0 if fixed else initial_state):
            if fixed and self._reset == "hard":
                self._hard_reset.repeat()
            else:
                _until_placed(self._environment.reset)
        if fixed:
            self.set_sim_state(self._initial_states[initial_state])

    def set_sim_state(self, flat_state: NDArray[np.float64]) -> None:
        """Set the physical state float64 [D]; LIBERO's own object states (a stove's knob) are updated."""
        super().set_sim_state(flat_state)
        self._environment._check_success()
        self._environment._post_process()

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        """The upright view uint8 [pixels, pixels, 3], with the task's sensor noise.

        The noise is defined at 256 px; frames of another size are drawn at 256 px and resized.
        """
        noise = None if self._variation is None else self._variation.noise
        if noise is None or camera != AGENT_CAMERA:
            return super().render(camera, pixels)
        frame = super().render(camera, NOISE_PIXELS)
        return noise.shown(frame, pixels, [self.task.number, self._initial_state, self.control_steps])

    def environment_arguments(self) -> dict[str, Any]:
        """Arguments of robosuite's environments, and those of LIBERO's own."""
        problem_file = problem_file_in_package(self.task)
        return super().environment_arguments() | {
            "bddl_file_name": problem_file,
            "initialization_noise": None,
        }

    def _bodies(self) -> Mapping[str, int]:
        return self._environment.obj_body_id

    def objects(self) -> tuple[str, ...]:
        """Names of the movable objects, as in the task's BDDL file."""
        return tuple(self._environment.objects_dict)

    def goals(self) -> tuple[Goal, ...]:
        """The goal of the task's BDDL file."""
        return tuple(
            Goal(condition[0].lower(), condition[1], condition[2] if len(condition) > 2 else "")
            for condition in self._environment.parsed_problem["goal_state"]
        )


def _until_placed(reset: Callable[[], Any]) -> None:
    """Reset an environment until it finds free places for all objects."""
    from robosuite.utils.errors import RandomizationError

    for attempt in range(_MAX_PLACEMENTS):
        try:
            reset()
            return
        except RandomizationError as error:
            if attempt + 1 == _MAX_PLACEMENTS:
                raise SimulatorError(f"no free places for the objects in {attempt + 1} attempts") from error


def _make_environment(task: TaskInfo, variation: Variation | None) -> Any:
    """LIBERO's environment of the task, without observations of its own."""
    from libero.libero.envs.env_wrapper import ControlEnv

    arm = (
        "Panda" if variation is None or not variation.arm else register_arm(variation.arm, variation.package)
    )
    try:
        with seeded_numpy(0), silent():
            wrapper = ControlEnv(
                bddl_file_name=task.problem_file,
                robots=[arm],
                use_camera_obs=False,
                has_offscreen_renderer=True,
                ignore_done=True,
            )
    except (FileNotFoundError, ValueError) as error:
        # MuJoCo reports a missing mesh or texture as ValueError("... Error opening file ...").
        if isinstance(error, ValueError) and "opening file" not in str(error):
            raise
        raise InputError(
            f"task {task.number} of {task.suite}: an asset is missing ({' '.join(str(error).split())}); "
            f"complete the folder that LIBERO_ASSETS names, or unset it and run: {INSTALL}"
        ) from error
    environment = wrapper.env
    if variation is not None:
        environment._setup_camera = _camera_setter(environment, variation.camera)
    return environment


def _camera_setter(environment: Any, view: CameraView) -> Callable[[Any], None]:
    """What the environment calls when its next hard reset builds the model: moves the agent camera."""
    set_up_camera = environment._setup_camera

    def set_up_moved_camera(arena: Any) -> None:
        set_up_camera(arena)
        camera = arena.worldbody.find("./camera[@name='agentview']")
        place, orientation = (
            [float(number) for number in camera.get(attribute).split()] for attribute in ("pos", "quat")
        )
        position, quaternion = moved_camera(place, orientation, view)
        arena.set_camera("agentview", pos=position, quat=quaternion)

    return set_up_moved_camera


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Suppress LIBERO's informational prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
