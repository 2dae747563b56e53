"""The simulator worker: a process that keeps one simulator open and runs episode after episode in it."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from eval.policy.interface import Observation, Policy
from eval.pool.child import Deadline, Heart, end_with_parent
from eval.pool.messages import EpisodeSpec, OpenSuite, PolicyShape, PolicySource, Raised, TimeLimits
from eval.rollout.episode import VIDEO_STRIDE, EpisodeResult, run_episode
from eval.simulator.interface import Simulator, TaskInfo
from eval.video import write_video

_CONTROL_FREQUENCY = 20  # steps a second of simulated time


def simulate(
    connection: Connection,
    deadline: Deadline,
    open_suite: OpenSuite,
    policy: PolicySource | PolicyShape | None,
    limits: TimeLimits,
) -> None:
    """Body of the process: takes `EpisodeSpec`s, gives an `EpisodeResult` or `Raised` for each.

    Args:
        connection: To the pool; observations go there too, and chunks of actions come back.
        deadline: Moved before whatever may hang.
        open_suite: Opens the suite.
        policy: Loaded here, or the shape of one that a server runs; None: the shape is sent after the
            first episode, so that simulators open while the policy is loaded.
        limits: Time limits.
    """
    end_with_parent()
    heart = Heart(deadline, limits.step)
    kept = _KeptSimulator(open_suite)
    acting: Policy | None = None
    if policy is not None:
        acting = RemotePolicy(connection, heart, policy) if isinstance(policy, PolicyShape) else policy.load()
    while True:
        heart.rest()
        try:
            spec: EpisodeSpec = connection.recv()
        except EOFError:
            return
        heart.allow(limits.start)
        try:
            simulator = kept.open(spec.suite, spec.task)
            if acting is None:
                heart.rest()
                acting = RemotePolicy(connection, heart, connection.recv())
                heart.allow(limits.start)
            video = spec.videos is not None
            result = run_episode(simulator, acting, spec.initial_state, spec.horizon, video, heart.beat)
            result = _filmed(result, spec, simulator.task)
        except Exception as error:  # whatever it is, the pool is told: this is the end of the process
            connection.send(Raised(str(error), isinstance(error, InputError), traceback.format_exc()))
            return
        connection.send(result)


class RemotePolicy:
    """A policy that a server runs: observations go out, chunks of actions come back."""

    def __init__(self, connection: Connection, heart: Heart, shape: PolicyShape) -> None:
        self._connection, self._heart = connection, heart
        self.chunk, self.history = shape.chunk, shape.history
        self.camera, self.pixels = shape.camera, shape.pixels

    def reset(self, environment: int, simulator: Simulator) -> None:
        """Nothing: a policy that is served remembers nothing but the frames that it is given."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """Actions [B, K, 7], one observation after the other."""
        chunks = []
        for observation in observations:
            self._heart.rest()
            self._connection.send(observation)
            chunks.append(self._connection.recv())
            self._heart.beat()
        return np.stack(chunks)


class _KeptSimulator:
    """The simulator of one task, open until another task is asked for."""

    def __init__(self, open_suite: OpenSuite) -> None:
        self._open_suite = open_suite
        self._of: tuple[str, int] | None = None
        self._simulator: Simulator | None = None

    def open(self, suite: str, task: int) -> Simulator:
        if self._simulator is None or self._of != (suite, task):
            if self._simulator is not None:
                self._simulator.close()
                self._simulator = None
            self._simulator = self._open_suite(suite).open(task)
            self._of = (suite, task)
        return self._simulator


def _filmed(result: EpisodeResult, spec: EpisodeSpec, task: TaskInfo) -> EpisodeResult:
    """Write the episode's video, if it was filmed, and put its file name in the place of the frames."""
    if spec.videos is None or not result.frames:
        return result
    outcome = "error" if result.error is not None else "success" if result.success else "failure"
    name = f"{task.name}_state_{result.initial_state:02d}_{outcome}.mp4"
    write_video(spec.videos / name, result.frames, _CONTROL_FREQUENCY // VIDEO_STRIDE)
    return replace(result, frames=[], video=name)
