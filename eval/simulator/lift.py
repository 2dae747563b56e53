"""robosuite's Lift task as suites: needs only packages from PyPI.

`robosuite_lift` is the task itself. `robosuite_lift_camera` and `robosuite_lift_noise` change what the agent
camera shows as LIBERO-Plus does in LIBERO's tasks: ten views from its range, or its five kinds of sensor
noise, each at two severities. Everything else is the same, initial states too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA
from eval.config import Observations, Reset
from eval.simulator.interface import Goal, TaskInfo
from eval.simulator.libero.plus_camera import CameraView, moved_camera
from eval.simulator.libero.plus_noise import NOISE_PIXELS, SensorNoise
from eval.simulator.robosuite_task import (
    RobosuiteSimulator,
    RobosuiteSuite,
    build_environment,
    look_at,
    prepare_robosuite,
)

SUITE, CAMERA_SUITE, NOISE_SUITE = "robosuite_lift", "robosuite_lift_camera", "robosuite_lift_noise"
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

_PLAIN = CameraView()
_VIEWS = (
    CameraView(horizontal=15),
    CameraView(horizontal=-15),
    CameraView(horizontal=30),
    CameraView(horizontal=-30),
    CameraView(vertical=15),
    CameraView(distance=1.2),
    CameraView(distance=1.5),
    CameraView(turn=4),
    CameraView(turn=-4),
    CameraView(tilt=4),
)
_NOISES = tuple(SensorNoise(10 * kind + severity) for kind in range(5) for severity in (3, 7))


@dataclass(frozen=True, slots=True)
class _Variation:
    """How the agent camera is moved, or what its frames suffer."""

    view: CameraView = _PLAIN
    noise: SensorNoise | None = None

    @property
    def name(self) -> str:
        if self.noise is not None:
            return f"_noise_{self.noise.number}"
        changed = ((each.name, getattr(self.view, each.name)) for each in fields(self.view))
        words = [f"{name}_{value:g}" for name, value in changed if value != getattr(_PLAIN, name)]
        return "".join(f"_{word}" for word in words).replace("-", "minus_").replace(".", "_")


_VARIATIONS: dict[str, tuple[_Variation, ...]] = {
    SUITE: (_Variation(),),
    CAMERA_SUITE: tuple(_Variation(view=view) for view in _VIEWS),
    NOISE_SUITE: tuple(_Variation(noise=noise) for noise in _NOISES),
}
SUITES = tuple(_VARIATIONS)


class LiftSimulator(RobosuiteSimulator):
    """A Panda before a table with one red cube; solved when the cube is 4 cm above the table."""

    def __init__(
        self,
        observations: Observations = "recomputed",
        reset: Reset = "soft",
        task: TaskInfo = TASK,
        variation: _Variation = _Variation(),
    ) -> None:
        super().__init__(_make_environment(variation.view), task, observations, reset)
        self._noise, self._initial_state = variation.noise, 0

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        """The upright view uint8 [pixels, pixels, 3], with the task's sensor noise."""
        if self._noise is None or camera != AGENT_CAMERA:
            return super().render(camera, pixels)
        frame = super().render(camera, NOISE_PIXELS)
        return self._noise.shown(frame, pixels, [self.task.number, self._initial_state, self.control_steps])

    def _place(self, initial_state: int) -> None:
        self._initial_state = initial_state
        super()._place(initial_state)

    def _bodies(self) -> Mapping[str, int]:
        return {CUBE: int(self._environment.cube_body_id)}

    def objects(self) -> tuple[str, ...]:
        """The cube."""
        return (CUBE,)

    def goals(self) -> tuple[Goal, ...]:
        """Lift the cube."""
        return (Goal("lift", CUBE),)


class LiftSuite(RobosuiteSuite):
    """One of `SUITES`: the task, or ten of what its agent camera shows otherwise.

    Raises:
        InputError: Renderer or package are missing.
    """

    def __init__(self, name: str = SUITE) -> None:
        tasks = (
            replace(TASK, suite=name, number=number, name=f"{TASK.name}{variation.name}")
            for number, variation in enumerate(_VARIATIONS[name])
        )
        super().__init__(name, tuple(tasks))

    def _build(self, task: TaskInfo, observations: Observations, reset: Reset) -> LiftSimulator:
        return LiftSimulator(observations, reset, task, _VARIATIONS[self.name][task.number])


def _make_environment(view: CameraView) -> Any:
    """The Lift of robosuite with our agent camera, moved."""
    prepare_robosuite()
    from robosuite.environments.manipulation.lift import Lift

    orientation = look_at(_CAMERA_EYE, _CAMERA_TARGET)
    position, quaternion = moved_camera(_CAMERA_EYE, orientation.tolist(), view)
    if view == _PLAIN:  # whose numbers `moved_camera` rounds
        position, quaternion = np.array(_CAMERA_EYE), orientation
    return build_environment(Lift, position, quaternion, _CAMERA_FIELD_OF_VIEW)
