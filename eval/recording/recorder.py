"""Records one episode as it runs: frames of both cameras, state and action of every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.recording.recorded_episode import CAMERAS, RecordedEpisode, episode_folder
from eval.recording.statistics import FrameStatistics
from eval.rollout.episode import EpisodeResult
from eval.simulator.interface import CONTROL_FREQUENCY, Simulator, TaskInfo
from eval.video import VideoInMemory


@dataclass(frozen=True, slots=True)
class RecordingPlace:
    """Where an episode is recorded, and how.

    Attributes:
        episodes: Folder of the recorded episodes.
        pixels: Side of the recorded frames, even.
    """

    episodes: Path
    pixels: int


class EpisodeRecorder:
    """A `StepObserver` that keeps what it sees, encoded, until the episode has its result.

    It renders and reads the state, which changes nothing in the simulator.

    Args:
        place: Where the recording is written.
        heartbeat: Called before every rendered frame, and before the recording is written.
    """

    def __init__(self, place: RecordingPlace, heartbeat: Callable[[], None]) -> None:
        self._place, self._heartbeat = place, heartbeat
        self._videos = {camera: VideoInMemory(place.pixels, CONTROL_FREQUENCY) for camera in CAMERAS}
        self._statistics = {camera: FrameStatistics() for camera in CAMERAS}
        self._states: list[NDArray[np.float32]] = []
        self._actions: list[NDArray[np.float32]] = []

    def observe(self, simulator: Simulator, action: NDArray[np.float64]) -> None:
        """Record the frames and the state before an action, and the action [7]."""
        for camera in CAMERAS:
            self._heartbeat()
            frame = simulator.render(camera, self._place.pixels)
            self._videos[camera].add(frame)
            self._statistics[camera].add(frame)
        self._states.append(simulator.state().astype(np.float32))
        self._actions.append(np.asarray(action, np.float32))

    def store(self, result: EpisodeResult, task: TaskInfo) -> EpisodeResult:
        """Write the recording of an episode that ended without a simulator error.

        A recording that cannot be written leaves the outcome as it is; `recording_error` says why.
        """
        if result.error is not None:
            return result
        self._heartbeat()
        folder = episode_folder(self._place.episodes, result.task, result.initial_state)
        episode = RecordedEpisode(
            folder=folder,
            task=result.task,
            task_name=task.name,
            instruction=task.instruction,
            initial_state=result.initial_state,
            success=result.success,
            actions_sha256=result.actions_sha256,
            states=np.stack(self._states),
            actions=np.stack(self._actions),
            frames={camera: statistics.result() for camera, statistics in self._statistics.items()},
        )
        try:
            episode.write({camera: video.finish() for camera, video in self._videos.items()})
        except OSError as error:
            return replace(result, recording_error=f"{folder}: {error.strerror or error}")
        return result
