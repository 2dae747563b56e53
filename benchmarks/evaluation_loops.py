"""The plain loops of the evaluation benchmark: every episode in one process, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from eval.policy.checkpoint_policy import CheckpointPolicy
from eval.policy.interface import Policy
from eval.policy.source import PolicyReference
from eval.pool.messages import EpisodeSpec, PolicySource
from eval.pool.pool import Pool
from eval.rollout.episode import EpisodeResult, run_episode
from eval.simulator.interface import SETTLE_ACTION, SETTLE_STEPS, Simulator, TaskInfo
from eval.simulator.panda import CAMERA_NAMES
from eval.simulator.registry import open_suite
from pretrain.model.generate import Order


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one episode went.

    Attributes:
        task: Number of the task.
        initial_state: Number of the initial state.
        success: Whether the task was solved.
        steps: Steps taken.
        actions_sha256: As in `EpisodeResult`.
        state_sha256: SHA-256 of the simulator's last state as little-endian float64; None: it is not known.
    """

    task: int
    initial_state: int
    success: bool
    steps: int
    actions_sha256: str
    state_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way of evaluating gave.

    Attributes:
        outcomes: Of all episodes.
        start: CPU seconds to open the simulators and to draw their first frames.
        running: CPU seconds of the episodes themselves. Both are None where processes share the work.
    """

    outcomes: list[Outcome]
    start: float | None = None
    running: float | None = None


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


class LiberoScript:
    """LIBERO's own environment as its scripts use it, as a `Simulator` for `run_episode`.

    Every reset builds the model anew, and both cameras are rendered at every step. Numpy is seeded for each
    reset, and samplers that earlier ones have added are removed, so that an episode does not depend on those
    before it; LIBERO's scripts seed once.

    Args:
        task: The task.
        initial_states: Its fixed initial states, float64 [N, D].
        pixels: Side of the frames.
    """

    def __init__(self, task: TaskInfo, initial_states: NDArray[np.float64], pixels: int) -> None:
        from libero.libero.envs.env_wrapper import OffScreenRenderEnv

        self.task, self._initial_states = task, initial_states
        self._script = OffScreenRenderEnv(
            bddl_file_name=task.problem_file, camera_heights=pixels, camera_widths=pixels
        )
        self._samplers = self._script.env.object_property_initializers
        self._first_samplers = len(self._samplers)
        self._seen: dict[str, NDArray[Any]] = {}
        self.success = False

    def reset(self, initial_state: int) -> None:
        """Start an episode."""
        del self._samplers[self._first_samplers :]
        self._script.seed(0)
        self._script.reset()
        self._seen = self._script.set_init_state(self._initial_states[initial_state])
        for _ in range(SETTLE_STEPS):
            self.step(np.array(SETTLE_ACTION))

    def step(self, action: NDArray[np.float64]) -> None:
        """Apply an action."""
        self._seen, _, self.success, _ = self._script.step(action)

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        """The frame rendered after the last step."""
        return np.ascontiguousarray(self._seen[f"{CAMERA_NAMES[camera]}_image"][::-1, ::-1])

    def state(self) -> NDArray[np.float64]:
        """Proprioception float64 [8]."""
        from robosuite.utils.transform_utils import quat2axisangle

        seen = self._seen
        turn = quat2axisangle(seen["robot0_eef_quat"])
        return np.concatenate([seen["robot0_eef_pos"], turn, seen["robot0_gripper_qpos"]])

    def sim_state(self) -> NDArray[np.float64]:
        """Physical state float64 [D]."""
        return np.array(self._script.sim.get_state().flatten())

    def close(self) -> None:
        """Free physics and rendering context."""
        self._script.close()


class RenderedAtEveryStep:
    """A simulator that renders both cameras after every step, used or not."""

    def __init__(self, simulator: Simulator, pixels: int) -> None:
        self._simulator, self._pixels = simulator, pixels
        self._views: dict[str, NDArray[np.uint8]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._simulator, name)

    def reset(self, initial_state: int) -> None:
        """Start an episode."""
        self._simulator.reset(initial_state)
        self._render_all()

    def step(self, action: NDArray[np.float64]) -> None:
        """Apply an action."""
        self._simulator.step(action)
        self._render_all()

    def render(self, camera: str, pixels: int) -> NDArray[np.uint8]:
        """The frame rendered after the last step."""
        return self._views[camera]

    def _render_all(self) -> None:
        cameras = (AGENT_CAMERA, WRIST_CAMERA)
        self._views = {camera: self._simulator.render(camera, self._pixels) for camera in cameras}


def loaded(source: PolicySource, frugal: bool) -> Policy:
    """The policy; a frugal network decodes all actions of a chunk together, else every token on its own."""
    if not isinstance(source, PolicyReference):
        return source.load()
    order: Order = "parallel" if frugal else "token"
    return CheckpointPolicy(
        Path(source.name),
        batch=1,
        exported=source.exported,
        order=order,
        precision=source.precision,
        decoder=source.decoder,
    )


def loop(work: Sequence[EpisodeSpec], source: PolicySource, frugal: bool) -> Measured:
    """Every episode in this process; a frugal loop renders only what the policy looks at."""
    outcomes, start, running = [], 0.0, 0.0
    policy = loaded(source, frugal)
    for task in sorted({spec.task for spec in work}):
        episodes = [spec for spec in work if spec.task == task]
        before = cpu_seconds()
        with _opened(episodes[0], policy.pixels, frugal) as simulator:
            simulator.reset(episodes[0].initial_state)
            for camera in policy.cameras:
                simulator.render(camera, policy.pixels)
            opened = cpu_seconds()
            for spec in episodes:
                result = run_episode(simulator, policy, spec.initial_state, spec.horizon)
                outcomes.append(_outcome(result, simulator.sim_state()))
            start, running = start + opened - before, running + cpu_seconds() - opened
    return Measured(outcomes, start, running)


@contextmanager
def _opened(spec: EpisodeSpec, pixels: int, frugal: bool) -> Iterator[Any]:
    """The simulator of a task: LIBERO's script where the loop is plain and the suite has one."""
    suite: Any = open_suite(spec.suite)
    if frugal or not suite.tasks[spec.task].problem_file:
        with closing(suite.open(spec.task, spec.observations)) as simulator:
            yield simulator if frugal else RenderedAtEveryStep(simulator, pixels)
    else:
        script = LiberoScript(suite.tasks[spec.task], suite._initial_states(spec.task), pixels)
        with closing(script):
            yield script


def pool(work: Sequence[EpisodeSpec], policy: PolicySource, workers: int) -> Measured:
    """Every episode in the pool's simulators, one policy server for all of them."""
    with Pool(policy, workers) as processes:
        return Measured([_outcome(result) for result in processes.run(work)])


def _outcome(result: EpisodeResult, state: NDArray[np.float64] | None = None) -> Outcome:
    return Outcome(
        result.task,
        result.initial_state,
        result.success,
        result.steps,
        result.actions_sha256,
        None if state is None else hashlib.sha256(state.astype("<f8").tobytes()).hexdigest(),
    )
