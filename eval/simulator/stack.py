"""robosuite's Stack task as suites: a red cube onto a larger green one. Needs only packages from PyPI.

`robosuite_stack` is the task itself: both cubes are drawn in a square of 16 cm, at any angle, in any order.
`robosuite_stack_narrow` is the same task with a part of those placements, for small policies and few
demonstrations: the red cube is drawn in the strip of the square nearest to the robot and the green one in the
farthest, each 5 cm deep and 8 cm wide, at any angle. There the green cube is never in the way of a finger, so
that the hand need not turn, and the wrist camera sees it beyond the red one from the first step on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from eval.config import Observations, Reset
from eval.simulator.interface import Goal, TaskInfo
from eval.simulator.robosuite_task import (
    RobosuiteSimulator,
    RobosuiteSuite,
    build_environment,
    look_at,
    prepare_robosuite,
)

SUITE, NARROW_SUITE = "robosuite_stack", "robosuite_stack_narrow"
SUITES = (SUITE, NARROW_SUITE)
RED, GREEN = "red_cube", "green_cube"

# robosuite's agent view shows the cubes behind one another and the gripper only when it is low. This camera
# is in front of the robot and to its left: a 64 pixel frame shows gripper and cubes during the whole task.
_CAMERA_EYE = (0.38, 0.62, 1.3)
_CAMERA_TARGET = (-0.01, 0.0, 0.91)
_CAMERA_FIELD_OF_VIEW = 25.0

# Metres from the middle of the table; robosuite draws x and y of both cubes in -0.08 to 0.08.
_NARROW = {"cubeA": ((-0.08, -0.03), (-0.04, 0.04)), "cubeB": ((0.03, 0.08), (-0.04, 0.04))}
_TABLE = (0.0, 0.0, 0.8)
_ABOVE_TABLE = 0.01

TASK = TaskInfo(
    suite=SUITE,
    number=0,
    name="stack_the_red_cube_on_the_green_cube",
    instruction="stack the red cube on the green cube",
    horizon=160,
    environment="Stack",
)


class StackSimulator(RobosuiteSimulator):
    """A Panda before a table with two cubes; solved when the red one, let go, is in the air on the green one.

    In robosuite's words: the red cube touches the green one, its centre is more than 4 cm above the table,
    and the fingers do not both touch it.
    """

    def __init__(
        self, observations: Observations = "recomputed", reset: Reset = "soft", task: TaskInfo = TASK
    ) -> None:
        super().__init__(_make_environment(task.suite == NARROW_SUITE), task, observations, reset)

    def _bodies(self) -> Mapping[str, int]:
        environment = self._environment
        return {RED: int(environment.cubeA_body_id), GREEN: int(environment.cubeB_body_id)}

    def objects(self) -> tuple[str, ...]:
        """Both cubes."""
        return (RED, GREEN)

    def goals(self) -> tuple[Goal, ...]:
        """Stack the red cube on the green one."""
        return (Goal("stack", RED, GREEN),)


class StackSuite(RobosuiteSuite):
    """One of `SUITES`, with one task.

    Raises:
        InputError: Renderer or package are missing.
    """

    def __init__(self, name: str = SUITE) -> None:
        super().__init__(name, (replace(TASK, suite=name),))
        if name == NARROW_SUITE:
            self.notes = (f"narrower placements than robosuite's Stack: rates do not compare with {SUITE}'s",)

    def _build(self, task: TaskInfo, observations: Observations, reset: Reset) -> StackSimulator:
        return StackSimulator(observations, reset, task)


def _make_environment(narrow: bool) -> Any:
    """The Stack of robosuite with our agent camera, and with the narrow placements where they are asked."""
    prepare_robosuite()
    from robosuite.environments.manipulation.stack import Stack

    class _Stack(Stack):
        def _load_model(self) -> None:
            if narrow:  # a hard reset builds cubes anew, and robosuite would put them into the old sampler
                self.placement_initializer = None
            super()._load_model()
            if narrow:
                self.placement_initializer = _narrow_placement([self.cubeA, self.cubeB])

    quaternion = look_at(_CAMERA_EYE, _CAMERA_TARGET)
    return build_environment(_Stack, _CAMERA_EYE, quaternion, _CAMERA_FIELD_OF_VIEW)


def _narrow_placement(cubes: list[Any]) -> Any:
    """A sampler of robosuite for each cube, which keeps them apart as robosuite's own does."""
    from robosuite.utils.placement_samplers import SequentialCompositeSampler, UniformRandomSampler

    sampler = SequentialCompositeSampler(name="ObjectSampler")
    for cube in cubes:
        x_range, y_range = _NARROW[cube.name]
        sampler.append_sampler(
            UniformRandomSampler(
                name=f"{cube.name}_sampler",
                mujoco_objects=cube,
                x_range=x_range,
                y_range=y_range,
                ensure_object_boundary_in_range=False,
                reference_pos=_TABLE,
                z_offset=_ABOVE_TABLE,
            )
        )
    return sampler
