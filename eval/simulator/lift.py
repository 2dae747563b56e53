"""robosuite's Lift task as a suite: needs only packages from PyPI."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np

from data.errors import InputError
from eval.config import Observations, Reset
from eval.simulator.interface import Goal, TaskInfo
from eval.simulator.panda import PandaSimulator, installed_versions, panda_arguments, seeded_numpy
from eval.simulator.provenance import renderer
from eval.simulator.rendering import choose_backend, quiet_robosuite

SUITE = "robosuite_lift"
CUBE = "cube"

# The default agent view shows the gripper only when it is low. This camera is on the same side, lower and
# with a narrower view: a 64 pixel frame shows gripper and cube during the whole task, at 5 mm per pixel.
_CAMERA_EYE = (0.6, 0.0, 1.32)
_CAMERA_TARGET = (-0.06, 0.0, 0.92)
_CAMERA_FIELD_OF_VIEW = 27.0

TASK = TaskInfo(
    suite=SUITE,
    number=0,
    name="lift_the_red_cube",
    instruction="lift the red cube",
    horizon=120,
    environment="Lift",
)


class LiftSimulator(PandaSimulator):
    """A Panda before a table with one red cube; solved when the cube is 4 cm above the table."""

    def __init__(self, observations: Observations = "recomputed", reset: Reset = "soft") -> None:
        environment = _make_environment()
        environment.hard_reset = reset == "hard"
        super().__init__(environment, TASK, observations)

    def _place(self, initial_state: int) -> None:
        # Placement and the noise of the arm's initial pose are drawn from numpy's global generator.
        with seeded_numpy(initial_state):
            self._environment.reset()

    def _bodies(self) -> Mapping[str, int]:
        return {CUBE: int(self._environment.cube_body_id)}

    def objects(self) -> tuple[str, ...]:
        """The cube."""
        return (CUBE,)

    def goals(self) -> tuple[Goal, ...]:
        """Lift the cube."""
        return (Goal("lift", CUBE),)


class LiftSuite:
    """The suite `robosuite_lift`: one task.

    Raises:
        InputError: Renderer or package are missing.
    """

    name = SUITE
    tasks = (TASK,)
    standin_assets = False
    default_reset: Reset = "soft"
    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        if importlib.util.find_spec("robosuite") is None:
            raise InputError("robosuite is not installed; run: pip install --no-deps robosuite==1.4.0")
        choose_backend()

    def versions(self) -> dict[str, str]:
        """Versions of robosuite and MuJoCo."""
        return installed_versions("robosuite", "mujoco")

    def renderer(self) -> str:
        """Backend and vendor of the renderer."""
        return renderer()

    def open(
        self, task: int, observations: Observations = "recomputed", reset: Reset | None = None
    ) -> LiftSimulator:
        """Build the simulator of task 0. A hard reset builds the model anew, with a cube of another size."""
        if task != TASK.number:
            raise ValueError(f"{SUITE} has task 0 only, not {task}")
        return LiftSimulator(observations, reset or self.default_reset)


def _make_environment() -> Any:
    """The Lift of robosuite with our agent camera and no observations of its own."""
    choose_backend()
    quiet_robosuite()
    from robosuite.environments.manipulation.lift import Lift

    class _Lift(Lift):
        def _load_model(self) -> None:
            super()._load_model()
            self.model.mujoco_arena.set_camera(
                "agentview",
                pos=np.array(_CAMERA_EYE),
                quat=_look_at(_CAMERA_EYE, _CAMERA_TARGET),
                camera_attribs={"fovy": str(_CAMERA_FIELD_OF_VIEW)},
            )
            # Rendering the floor's faint reflection would take as long as everything else.
            self.model.mujoco_arena.asset.find("./material[@name='floorplane']").set("reflectance", "0")

    with seeded_numpy(0):  # the cube's size is drawn when the model is built
        return _Lift(
            **panda_arguments(),
            use_camera_obs=False,
            use_object_obs=False,
            has_renderer=False,
            has_offscreen_renderer=True,
            ignore_done=True,
        )


def _look_at(eye: tuple[float, float, float], target: tuple[float, float, float]) -> np.ndarray:
    """Quaternion (w, x, y, z) of an upright MuJoCo camera at `eye` that looks at `target`."""
    from robosuite.utils.transform_utils import mat2quat

    backward = np.subtract(eye, target)
    backward = backward / np.linalg.norm(backward)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right = right / np.linalg.norm(right)
    quaternion = mat2quat(np.stack([right, np.cross(backward, right), backward], axis=1))
    return quaternion[[3, 0, 1, 2]]
