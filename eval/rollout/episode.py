"""One episode: a policy in a simulator, chunk after chunk; only frames that someone sees are rendered."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA
from data.errors import InputError
from eval.policy.interface import Observation, Policy, decide
from eval.rollout.trace import ActionTrace, TraceRecorder
from eval.simulator.interface import ACTION_SIZE, Simulator, SimulatorError

# Of the video. A frame costs as much as four steps of the simulator, whatever its size.
VIDEO_STRIDE = 4  # steps between two frames
VIDEO_PIXELS = 160
_ENVIRONMENT = 0
_NO_FRAMES = np.empty((0, 0, 0, 0, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """Result of one episode.

    Attributes:
        task: Number of the task.
        initial_state: Number of the initial state.
        success: Whether the task was solved; false where there is an error.
        steps: Number of steps taken.
        error: Error of the simulator; None for a regular episode. An episode with an error is neither a
            success nor a failure of the policy.
        seconds: Wall time.
        frames: Frames of the video, uint8 [160, 160, 3] each; empty without a video.
        video: Name of the video's file; None where it was not written.
        video_error: Why a requested video was not written; it does not change the outcome.
        repeated_otherwise: Whether it was run again for its video or recording and ended otherwise, for the
            reason in `video_error` or `recording_error`: it is not run again for them.
        attempts: Number of attempts, more than one where a simulator broke down.
        actions_sha256: SHA-256 of all executed actions as little-endian float64: equal for two episodes that
            were the same to the last bit.
        recording_error: Why a requested recording was not written; it does not change the outcome.
        trace: Its actions, where a video was asked for; None in a stored result.
    """

    task: int
    initial_state: int
    success: bool
    steps: int
    error: str | None
    seconds: float
    frames: list[NDArray[np.uint8]] = field(default_factory=list, repr=False)
    video: str | None = None
    video_error: str | None = None
    repeated_otherwise: bool = False
    attempts: int = 1
    actions_sha256: str = ""
    recording_error: str | None = None
    trace: ActionTrace | None = field(default=None, repr=False)


class StepObserver(Protocol):
    """Sees every step of an episode."""

    def observe(self, simulator: Simulator, action: NDArray[np.float64]) -> None:
        """Called before each step: the simulator in the state that the action [7] will be executed in."""
        ...


def _no_heartbeat() -> None:
    """Default of `run_episode`: nothing watches the simulator."""


def run_episode(
    simulator: Simulator,
    policy: Policy,
    initial_state: int,
    horizon: int | None = None,
    video: bool = False,
    heartbeat: Callable[[], None] = _no_heartbeat,
    observer: StepObserver | None = None,
) -> EpisodeResult:
    """Run one episode until success or the horizon, executing each chunk open loop.

    Args:
        simulator: The task.
        policy: Chooses chunks of actions.
        initial_state: Number of the initial state.
        horizon: Maximum length in steps; None takes the suite's.
        video: Record every fourth frame of the agent camera, and the actions (`ActionTrace`).
        heartbeat: Called before every step and every rendered frame, so that a hung simulator is detected.
        observer: Sees every step; it may render, and changes nothing.

    Raises:
        InputError: The policy's chunk does not fit into the horizon.
    """
    horizon = horizon or simulator.task.horizon
    check_chunk(policy.chunk, horizon)
    started = time.monotonic()
    episode = _Episode(simulator, policy, horizon, video, heartbeat, observer)
    error = None
    try:
        simulator.reset(initial_state)
        policy.reset(_ENVIRONMENT, simulator)
        episode.run()
    except SimulatorError as raised:
        error = str(raised)
    return EpisodeResult(
        task=simulator.task.number,
        initial_state=initial_state,
        success=error is None and episode.success,
        steps=episode.steps,
        error=error,
        seconds=time.monotonic() - started,
        frames=episode.video_frames,
        actions_sha256=episode.actions.hexdigest(),
        trace=None if episode.trace is None else episode.trace.result(policy.embodiment.action),
    )


def check_chunk(chunk: int, horizon: int) -> None:
    """Refuse a chunk that is longer than an episode.

    Args:
        chunk: Actions in a chunk of the policy.
        horizon: Maximum length of an episode in steps.

    Raises:
        InputError: It is.
    """
    if chunk > horizon:
        raise InputError(
            f"the policy acts in chunks of {chunk} steps, longer than the horizon of {horizon}; raise horizon"
        )


class _Episode:
    """An episode in progress."""

    def __init__(
        self,
        simulator: Simulator,
        policy: Policy,
        horizon: int,
        video: bool,
        heartbeat: Callable[[], None],
        observer: StepObserver | None,
    ) -> None:
        self._simulator, self._policy, self._horizon, self._video = simulator, policy, horizon, video
        self._heartbeat, self._observer = heartbeat, observer
        self.trace = TraceRecorder() if video else None
        # Of each time step a frame of every camera, [V, pixels, pixels, 3].
        self._history: deque[NDArray[np.uint8]] = deque(maxlen=max(1, policy.history))
        self.video_frames: list[NDArray[np.uint8]] = []
        self.steps = 0
        self.success = False
        self.actions = hashlib.sha256()

    def run(self) -> None:
        """Act until success or the horizon."""
        while self.steps < self._horizon and not self.success:
            self._render_for_policy()
            actions, entropy = decide(self._policy, [self._observation()])
            chunk = actions[0]
            if chunk.shape != (self._policy.chunk, ACTION_SIZE):
                raise ValueError(f"policy gave {chunk.shape}, expected {(self._policy.chunk, ACTION_SIZE)}")
            if self.trace is not None:
                self.trace.decided(chunk, None if entropy is None else entropy[0])
            for position, action in enumerate(chunk[: self._horizon - self.steps]):
                # The frames before a chunk's first action were rendered above.
                if position > 0 and position > self._policy.chunk - self._policy.history:
                    self._render_for_policy()
                self._render_for_video()
                if self.trace is not None:
                    self.trace.observe(self._simulator)
                if self._observer is not None:
                    self._observer.observe(self._simulator, action)
                self._heartbeat()
                self._simulator.step(action)
                self.actions.update(np.asarray(action, "<f8").tobytes())
                self.steps += 1
                self.success = self._simulator.success
                if self.success:
                    break
        self._render_for_video(last=True)

    def _render_for_policy(self) -> None:
        """Render the frames of a time step that the policy will see."""
        if self._policy.history > 0:
            self._history.append(np.stack([self._render(camera) for camera in self._policy.cameras]))

    def _render(self, camera: str) -> NDArray[np.uint8]:
        self._heartbeat()
        return self._simulator.render(camera, self._policy.pixels)

    def _render_for_video(self, last: bool = False) -> None:
        if self._video and (last or self.steps % VIDEO_STRIDE == 0):
            self._heartbeat()
            self.video_frames.append(self._simulator.render(AGENT_CAMERA, VIDEO_PIXELS))

    def _observation(self) -> Observation:
        return Observation(
            environment=_ENVIRONMENT,
            instruction=self._simulator.task.instruction,
            frames=np.stack(self._history) if self._history else _NO_FRAMES,
            state=self._simulator.state() if self._policy.uses_state else None,
            with_entropy=self.trace is not None,
        )
