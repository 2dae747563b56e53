"""What robosuite's own tasks share: an environment with an agent camera of ours, numbered starts, a suite."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from eval.config import Observations, Reset
from eval.simulator.interface import Simulator, TaskInfo
from eval.simulator.panda import PandaSimulator, installed_versions, panda_arguments, seeded_numpy
from eval.simulator.provenance import renderer
from eval.simulator.rendering import check_apart_from_cuda, choose_backend, quiet_robosuite


class RobosuiteSimulator(PandaSimulator):
    """A task of robosuite, whose initial states are the draws of its own reset after seeding.

    Args:
        environment: Of `build_environment`.
        task: The task.
        observations: What frames and proprioception show; see `eval.config.EvaluationSettings`.
        reset: `hard` builds the model anew at the start of an episode.
    """

    def __init__(
        self,
        environment: Any,
        task: TaskInfo,
        observations: Observations = "recomputed",
        reset: Reset = "soft",
    ) -> None:
        environment.hard_reset = reset == "hard"
        super().__init__(environment, task, observations)

    def _place(self, initial_state: int) -> None:
        # Placement and the noise of the arm's initial pose are drawn from numpy's global generator.
        with seeded_numpy(initial_state):
            self._environment.reset()


class RobosuiteSuite(ABC):
    """Base of the suites of robosuite's tasks; subclasses build the simulator of a task.

    Args:
        name: Name of the suite.
        tasks: Its tasks.

    Raises:
        InputError: Renderer or package are missing.
    """

    standin_assets = False
    default_reset: Reset = "soft"
    notes: tuple[str, ...] = ()

    def __init__(self, name: str, tasks: tuple[TaskInfo, ...]) -> None:
        self.name, self.tasks = name, tasks
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
    ) -> Simulator:
        """Build the simulator of a task. A hard reset builds the model anew, with objects of other sizes."""
        if not 0 <= task < len(self.tasks):
            raise ValueError(f"{self.name} has tasks 0 to {len(self.tasks) - 1}, not {task}")
        check_apart_from_cuda()
        return self._build(self.tasks[task], observations, reset or self.default_reset)

    @abstractmethod
    def _build(self, task: TaskInfo, observations: Observations, reset: Reset) -> Simulator:
        """The simulator of a task."""


def build_environment(
    environment: Any,
    position: Sequence[float] | NDArray[np.float64],
    quaternion: Sequence[float] | NDArray[np.float64],
    field_of_view: float,
    **arguments: Any,
) -> Any:
    """An environment of robosuite with our agent camera and no observations of its own.

    Args:
        environment: Class of the environment, imported after `prepare_robosuite`.
        position: Of the agent camera [3], metres.
        quaternion: Of the agent camera (w, x, y, z) [4].
        field_of_view: Of the agent camera, vertical, degrees.
        arguments: Further ones of the environment.
    """

    class _Task(environment):
        def _load_model(self) -> None:
            super()._load_model()
            self.model.mujoco_arena.set_camera(
                "agentview",
                pos=position,
                quat=quaternion,
                camera_attribs={"fovy": str(field_of_view)},
            )
            # Rendering the floor's faint reflection would take as long as everything else.
            self.model.mujoco_arena.asset.find("./material[@name='floorplane']").set("reflectance", "0")

    with seeded_numpy(0):  # sizes of objects are drawn when the model is built
        return _Task(
            **panda_arguments(),
            use_camera_obs=False,
            use_object_obs=False,
            has_renderer=False,
            has_offscreen_renderer=True,
            ignore_done=True,
            **arguments,
        )


def prepare_robosuite() -> None:
    """Choose the renderer and silence robosuite; call it before a module of robosuite is imported."""
    choose_backend()
    quiet_robosuite()


def look_at(eye: Sequence[float], target: Sequence[float]) -> NDArray[np.float64]:
    """Quaternion (w, x, y, z) of an upright MuJoCo camera at `eye` [3] that looks at `target` [3]."""
    from robosuite.utils.transform_utils import mat2quat

    backward = np.subtract(eye, target)
    backward = backward / np.linalg.norm(backward)
    right = np.cross([0.0, 0.0, 1.0], backward)
    right = right / np.linalg.norm(right)
    quaternion = mat2quat(np.stack([right, np.cross(backward, right), backward], axis=1))
    return quaternion[[3, 0, 1, 2]]
