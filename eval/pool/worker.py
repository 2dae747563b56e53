"""The simulator worker: a process that holds one simulator open and runs episode after episode in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from eval.config import Observations, Reset
from eval.policy.interface import Decision, Observation, Policy
from eval.pool.child import Deadline, Heartbeat, end_with_parent
from eval.pool.messages import EpisodeSpec, OpenSuite, PolicySource, PolicySpec, TimeLimits, remote_error
from eval.recording.recorder import EpisodeRecorder
from eval.rollout.episode import VIDEO_STRIDE, EpisodeResult, run_episode
from eval.rollout.trace import trace_of
from eval.simulator.interface import CONTROL_FREQUENCY, Simulator, Suite, TaskInfo
from eval.video import write_video


def run_simulator_worker(
    connection: Connection,
    deadline: Deadline,
    open_suite: OpenSuite,
    policy: PolicySource | PolicySpec | None,
    limits: TimeLimits,
) -> None:
    """Body of the process: receive `EpisodeSpec`s, send an `EpisodeResult` or a `RemoteError` for each.

    Args:
        connection: To the pool; also carries observations to the policy server and chunks of actions back.
        deadline: Renewed before every operation that may hang.
        open_suite: Opens the suite.
        policy: Loaded here, or the spec of one run by a server; None: the spec is received after the first
            episode's, so that simulators open while the policy is loaded.
        limits: Time limits.
    """
    end_with_parent()
    heartbeat = Heartbeat(deadline, limits.step)
    simulators = _SimulatorCache(open_suite)
    acting: Policy | None = None
    if policy is not None:
        acting = (
            RemotePolicy(connection, heartbeat, policy) if isinstance(policy, PolicySpec) else policy.load()
        )
    while True:
        heartbeat.pause()
        try:
            spec: EpisodeSpec = connection.recv()
        except EOFError:
            return
        heartbeat.extend(limits.start)
        try:
            simulator = simulators.open(spec)
            if acting is None:
                heartbeat.pause()
                acting = RemotePolicy(connection, heartbeat, connection.recv())
                heartbeat.extend(limits.start)
            video = spec.videos is not None
            recorder = None if spec.recording is None else EpisodeRecorder(spec.recording, heartbeat.beat)
            result = run_episode(
                simulator, acting, spec.initial_state, spec.horizon, video, heartbeat.beat, recorder
            )
            result = _write_episode_video(result, spec, simulator.task)
            if recorder is not None:
                result = recorder.store(result, simulator.task)
        except Exception as error:  # any exception is sent to the pool; the process ends here
            connection.send(remote_error(error))
            return
        connection.send(result)


class RemotePolicy:
    """A policy run by a server: sends observations, receives chunks of actions."""

    def __init__(self, connection: Connection, heartbeat: Heartbeat, spec: PolicySpec) -> None:
        self._connection, self._heartbeat = connection, heartbeat
        self.embodiment, self.chunk, self.history = spec.embodiment, spec.chunk, spec.history
        self.cameras, self.pixels, self.uses_state = spec.cameras, spec.pixels, spec.uses_state

    def reset(self, environment: int, simulator: Simulator) -> None:
        """Nothing to do: a policy on a server remembers nothing."""

    def act(self, observations: Sequence[Observation]) -> NDArray[np.float64]:
        """Actions [B, K, 7], one observation after the other."""
        return self.decide(observations).actions

    def decide(self, observations: Sequence[Observation]) -> Decision:
        """The same, with what the server's policy says of its distributions."""
        chunks: list[NDArray[np.float64]] = []
        entropies: list[NDArray[np.float32] | None] = []
        for observation in observations:
            self._heartbeat.pause()
            self._connection.send(observation)
            chunk, entropy = self._connection.recv()
            chunks.append(chunk)
            entropies.append(entropy)
            self._heartbeat.beat()
        known = [entropy for entropy in entropies if entropy is not None]
        return Decision(np.stack(chunks), np.stack(known) if len(known) == len(chunks) else None)


class _SimulatorCache:
    """The simulator of one task, open until another task is requested."""

    def __init__(self, open_suite: OpenSuite) -> None:
        self._open_suite = open_suite
        self._suite: Suite | None = None
        self._key: tuple[str, int, Observations, Reset | None] | None = None
        self._simulator: Simulator | None = None

    def open(self, spec: EpisodeSpec) -> Simulator:
        key = (spec.suite, spec.task, spec.observations, spec.reset)
        if self._simulator is None or self._key != key:
            if self._simulator is not None:
                self._simulator.close()
                self._simulator = None
            if self._suite is None or self._suite.name != spec.suite:
                self._suite = self._open_suite(spec.suite)  # reads the files of all its tasks
            self._simulator = self._suite.open(spec.task, spec.observations, spec.reset)
            self._key = key
        return self._simulator


def _write_episode_video(result: EpisodeResult, spec: EpisodeSpec, task: TaskInfo) -> EpisodeResult:
    """Write the episode's video and actions if it was recorded; the result names the video's file.

    A video that cannot be written leaves the outcome as it is: episodes with longer videos, which are the
    failures, would be lost more often.
    """
    trace, result = result.trace, replace(result, trace=None)
    if spec.videos is None or not result.frames:
        return result
    outcome = "error" if result.error is not None else "success" if result.success else "failure"
    name = f"{task.name}_state_{result.initial_state:02d}_{outcome}.mp4"
    try:
        write_video(spec.videos / name, result.frames, CONTROL_FREQUENCY // VIDEO_STRIDE)
        if trace is not None:
            trace.write(trace_of(spec.videos / name))
    except OSError as error:
        return replace(result, frames=[], video_error=f"{spec.videos / name}: {error.strerror or error}")
    return replace(result, frames=[], video=name)
