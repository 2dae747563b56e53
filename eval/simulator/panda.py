"""Base of the robosuite simulators: a Panda arm in MuJoCo."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from data.errors import InputError
from eval.config import Observations
from eval.simulator.control_step import positions_computed_once
from eval.simulator.interface import (
    CONTROL_FREQUENCY,
    SETTLE_ACTION,
    SETTLE_STEPS,
    Goal,
    Pose,
    SimulatorError,
    TaskInfo,
)
from eval.simulator.published_observations import SampledMoment

CAMERA_NAMES = {AGENT_CAMERA: "agentview", WRIST_CAMERA: "robot0_eye_in_hand"}
_ARM_JOINTS = 7
_MUJOCO_SPHERE, _MUJOCO_CAPSULE, _MUJOCO_CYLINDER, _MUJOCO_BOX = 2, 3, 5, 6
_CORNER_SIGNS = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)], dtype=np.float64)


class PandaSimulator(abc.ABC):
    """Implements `Simulator` on a robosuite environment; subclasses add placement, bodies and goals.

    Args:
        environment: A robosuite `MujocoEnv` with one Panda under OSC_POSE control, soft resets.
        task: The task.
        observations: What frames and proprioception show; see `eval.config.EvaluationSettings`.
    """

    def __init__(self, environment: Any, task: TaskInfo, observations: Observations = "recomputed") -> None:
        self._environment = environment
        self._task = task
        self._sampled = SampledMoment(environment) if observations == "published" else None

    # --- episodes

    @property
    def task(self) -> TaskInfo:
        """The task this simulator runs."""
        return self._task

    @abc.abstractmethod
    def _place(self, initial_state: int) -> None:
        """Put robot and objects into a numbered initial state."""

    def reset(self, initial_state: int) -> None:
        """Start an episode: numbered initial state, then the settling steps."""
        self._begin(initial_state)
        self._settle()

    def replay_from(self, flat_state: NDArray[np.float64], initial_state: int) -> None:
        """Start an episode from a stored physical state float64 [D]: reset, overwrite, settle."""
        self._begin(initial_state)
        self.set_sim_state(flat_state)
        self._settle()

    def _begin(self, initial_state: int) -> None:
        if initial_state < 0:
            raise InputError(f"initial state {initial_state}: expected a number from 0 on")
        # A soft reset does not reset the gripper's commanded opening.
        gripper = self._environment.robots[0].gripper
        gripper.current_action = np.zeros_like(gripper.current_action)
        self._place(initial_state)

    def _settle(self) -> None:
        action = np.array(SETTLE_ACTION)
        for _ in range(SETTLE_STEPS):
            self.step(action)

    def step(self, action: NDArray[np.float64]) -> None:
        """Apply one action [7] for one control period (50 ms)."""
        from mujoco import FatalError, mjtWarning  # pyright: ignore[reportAttributeAccessIssue]

        try:
            with positions_computed_once(self._environment.sim):
                self._environment.step(action)
        except (FatalError, np.linalg.LinAlgError) as error:
            raise SimulatorError(f"{type(error).__name__}: {error}") from error
        # MuJoCo resets an unstable simulation by itself and only counts warnings.
        warnings = self._environment.sim.data._data.warning
        for kind in (mjtWarning.mjWARN_BADQPOS, mjtWarning.mjWARN_BADQVEL, mjtWarning.mjWARN_BADQACC):
            if warnings[kind].number:
                raise SimulatorError(f"unstable physics ({kind.name}) at a control of {action.tolist()}")

    @property
    def control_steps(self) -> int:
        """Control periods since the last reset, settling included."""
        return max(0, round(float(self._environment.sim.data.time) * CONTROL_FREQUENCY))

    @property
    def success(self) -> bool:
        """Whether the task is solved in the current state."""
        return bool(self._environment._check_success())

    # --- observations

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        """The upright view uint8 [pixels, pixels, 3]: MuJoCo's rotated by 180 degrees."""
        # robosuite renders into the current context, which another simulator may have changed.
        self._environment.sim._render_context_offscreen.gl_ctx.make_current()
        with self._observed():
            raw = self._environment.sim.render(camera_name=CAMERA_NAMES[camera], width=pixels, height=pixels)
        return np.ascontiguousarray(raw[::-1, ::-1])

    def state(self) -> NDArray[np.float64]:
        """Proprioception float64 [8]: gripper position [3], axis times angle [3], finger positions [2].

        The orientation is that of the hand body, robosuite's `robot0_eef_quat`: the grip site, at the same
        place, is turned by 90 degrees against it. MuJoCo's quaternion of a body is a continuous function of
        the joints; a rotation matrix would lose its sign, and the axis would flip where the angle passes pi.
        """
        from robosuite.utils.transform_utils import convert_quat, quat2axisangle

        with self._observed():
            hand = self._environment.robots[0].robot_model.eef_name
            quaternion = convert_quat(np.array(self._environment.sim.data.get_body_xquat(hand)), to="xyzw")
            fingers = self._positions()[_ARM_JOINTS : _ARM_JOINTS + 2]
            return np.concatenate([self.gripper().position, quat2axisangle(quaternion), fingers])

    def joints(self) -> NDArray[np.float64]:
        """Joint angles float64 [7] of the arm."""
        return self._positions()[:_ARM_JOINTS].copy()

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """Let the simulation's data show what is observed, inside the block."""
        if self._sampled is None:
            self._refresh()
            yield
        else:
            with self._sampled.shown():
                yield

    def _refresh(self) -> None:
        """Recompute poses from joint positions: after a physics step they are one substep old.

        Only kinematics, so that rendering never changes the physics.
        """
        from mujoco import mj_camlight, mj_kinematics  # pyright: ignore[reportAttributeAccessIssue]

        sim = self._environment.sim
        mj_kinematics(sim.model._model, sim.data._data)
        mj_camlight(sim.model._model, sim.data._data)

    def _positions(self) -> NDArray[np.float64]:
        return np.asarray(self._environment.sim.data.qpos)

    def sim_state(self) -> NDArray[np.float64]:
        """Physical state float64 [D]: time, positions and velocities, flat."""
        return np.array(self._environment.sim.get_state().flatten())

    def set_sim_state(self, flat_state: NDArray[np.float64]) -> None:
        """Set the physical state float64 [D] and recompute everything derived from it."""
        self._environment.sim.set_state_from_flattened(flat_state)
        self._environment.sim.forward()
        self._sample()

    def _sample(self) -> None:
        """Sample the present state, as LIBERO's `set_init_state` does."""
        if self._sampled is not None:
            self._environment._update_observables(force=True)

    def model_xml(self) -> str:
        """The MuJoCo model."""
        return str(self._environment.sim.model.get_xml())

    def environment_arguments(self) -> dict[str, Any]:
        """Arguments by which `robosuite.make` builds this environment, without observations and renderers."""
        return panda_arguments()

    # --- poses for the expert

    def gripper(self) -> Pose:
        """Pose of the grip site."""
        data, site = self._environment.sim.data, self._environment.robots[0].eef_site_id
        return Pose(np.array(data.site_xpos[site]), np.array(data.site_xmat[site]).reshape(3, 3))

    def finger_axis(self) -> NDArray[np.float64]:
        """Axis of the finger's slide joint in the grip site's frame."""
        sim = self._environment.sim
        joint = sim.model.joint_name2id("gripper0_finger_joint1")
        axis = self.gripper().rotation.T @ np.array(sim.data.xaxis[joint])
        return np.round(axis)

    @abc.abstractmethod
    def _bodies(self) -> Mapping[str, int]:
        """MuJoCo body of each object and fixture."""

    @abc.abstractmethod
    def objects(self) -> tuple[str, ...]:
        """Names of the movable objects."""

    @abc.abstractmethod
    def goals(self) -> tuple[Goal, ...]:
        """The conditions of the task."""

    def bodies(self) -> tuple[str, ...]:
        """Names of everything that has collision geometry."""
        return tuple(self._bodies())

    def position(self, name: str) -> NDArray[np.float64]:
        """Position [3] of an object's or site's frame."""
        bodies, data = self._bodies(), self._environment.sim.data
        if name in bodies:
            return np.array(data.body_xpos[bodies[name]])
        return np.array(data.get_site_xpos(name))

    def corners(self, name: str) -> NDArray[np.float64]:
        """World positions [N, 3] of the corners of an object's collision boxes."""
        model, data, root = self._environment.sim.model, self._environment.sim.data, self._bodies()[name]
        corners = []
        for geom in range(model.ngeom):
            if model.geom_contype[geom] == 0 or not _belongs(model, int(model.geom_bodyid[geom]), root):
                continue
            rotation = np.array(data.geom_xmat[geom]).reshape(3, 3)
            corners.append(_CORNER_SIGNS * _half_extents(model, geom) @ rotation.T + data.geom_xpos[geom])
        return np.concatenate(corners)

    def close(self) -> None:
        """Free physics and rendering context."""
        self._environment.close()


def panda_arguments() -> dict[str, Any]:
    """Arguments of robosuite that the environments of all suites share: a Panda moved by its hand's pose."""
    from robosuite import load_controller_config

    return {
        "robots": ["Panda"],
        "controller_configs": load_controller_config(default_controller="OSC_POSE"),
        "control_freq": CONTROL_FREQUENCY,
        "hard_reset": False,
    }


@contextmanager
def seeded_numpy(seed: int) -> Iterator[None]:
    """Seed numpy's global generator inside the block and restore it afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of those packages that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _belongs(model: Any, body: int, root: int) -> bool:
    """Whether `body` is `root` or one of its descendants."""
    while body not in (0, root):
        body = int(model.body_parentid[body])
    return body == root


def _half_extents(model: Any, geom: int) -> NDArray[np.float64]:
    """Half extents [3] of the box around a collision geometry, in its own frame."""
    kind, size = int(model.geom_type[geom]), np.array(model.geom_size[geom])
    if kind == _MUJOCO_BOX:
        return size
    if kind == _MUJOCO_SPHERE:
        return np.full(3, size[0])
    if kind in (_MUJOCO_CAPSULE, _MUJOCO_CYLINDER):
        return np.array([size[0], size[0], size[1]])
    return np.array(model.geom_aabb[geom][3:])
