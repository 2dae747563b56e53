"""One recorded episode on disk, before it becomes part of a data set.

EPISODES/task_000_state_00/
    episode.json    what the episode is, and statistics of its frames
    steps.npz       `state` float32 [T, 8], `action` float32 [T, 7]
    agent.mp4       frames before each action, T of them, 20 a second
    wrist.mp4

The folder is written whole or not at all.
"""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from data.errors import InputError
from data.files import folder_written_whole, write_whole
from data.json_record import JsonRecord
from data.tokens.vocabulary import ACTION_DIM, STATE_DIM
from eval.recording.statistics import FeatureStatistics

CAMERAS = (AGENT_CAMERA, WRIST_CAMERA)
_EPISODE = "episode.json"
_STEPS = "steps.npz"
_STATISTICS = ("min", "max", "mean", "std")


@dataclass(frozen=True, slots=True)
class RecordedEpisode:
    """A recorded episode of T steps.

    Attributes:
        folder: Its folder, with `agent.mp4` and `wrist.mp4`.
        task: Number of the task.
        task_name: Its name.
        instruction: The task in words.
        initial_state: Number of the initial state.
        success: Whether it was solved, by its last action.
        actions_sha256: As in `EpisodeResult`.
        states: float32 [T, 8], `Simulator.state` before each action.
        actions: float32 [T, 7], as given to `Simulator.step`.
        frames: Camera -> statistics of its frames.
    """

    folder: Path
    task: int
    task_name: str
    instruction: str
    initial_state: int
    success: bool
    actions_sha256: str
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    frames: Mapping[str, FeatureStatistics]

    @property
    def length(self) -> int:
        """Number of steps T."""
        return len(self.actions)

    def video(self, camera: str) -> Path:
        """The video of a camera."""
        return self.folder / f"{camera}.mp4"

    def write(self, videos: Mapping[str, bytes]) -> None:
        """Write the episode into `folder`, in place of an earlier recording.

        Args:
            videos: Camera -> MP4.

        Raises:
            OSError: It cannot be written.
        """
        steps = io.BytesIO()
        np.savez(steps, state=self.states, action=self.actions)
        description = {
            "task": self.task,
            "task_name": self.task_name,
            "instruction": self.instruction,
            "initial_state": self.initial_state,
            "success": int(self.success),
            "actions_sha256": self.actions_sha256,
            "length": self.length,
            "frames": {camera: _channels(statistics) for camera, statistics in self.frames.items()},
        }
        if self.folder.exists():
            shutil.rmtree(self.folder)
        with folder_written_whole(self.folder) as folder:
            for camera, video in videos.items():
                write_whole(folder / f"{camera}.mp4", video)
            write_whole(folder / _STEPS, steps.getvalue())
            write_whole(folder / _EPISODE, json.dumps(description, indent=2).encode())

    @classmethod
    def read(cls, folder: Path) -> RecordedEpisode:
        """Read what `write` has written.

        Raises:
            InputError: A file is missing or damaged.
        """
        record = read_description(folder)
        length = record.integer("length", 1)
        states, actions = _read_steps(folder / _STEPS, length)
        frames = record.record("frames")
        return cls(
            folder=folder,
            task=record.integer("task"),
            task_name=record.text("task_name"),
            instruction=record.text("instruction"),
            initial_state=record.integer("initial_state"),
            success=bool(record.integer("success", 0, 1)),
            actions_sha256=record.text("actions_sha256"),
            states=states,
            actions=actions,
            frames={camera: _of_channels(frames.record(camera), length) for camera in CAMERAS},
        )


def episode_folder(episodes: Path, task: int, initial_state: int) -> Path:
    """The folder of one episode among others."""
    return episodes / f"task_{task:03d}_state_{initial_state:02d}"


def recorded_actions(folder: Path) -> str | None:
    """SHA-256 of the actions of a recorded episode; None where there is none.

    Raises:
        InputError: Its description is damaged.
    """
    return read_description(folder).text("actions_sha256") if folder.is_dir() else None


def read_description(folder: Path) -> JsonRecord:
    """The description of a recorded episode.

    Raises:
        InputError: It is missing or damaged.
    """
    path = folder / _EPISODE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error.strerror) from error
    return JsonRecord.parse(content, str(path))


def _read_steps(path: Path, length: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """States float32 [T, 8] and actions float32 [T, 7]."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            states, actions = arrays["state"], arrays["action"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    for name, array, width in (("state", states, STATE_DIM), ("action", actions, ACTION_DIM)):
        if array.shape != (length, width) or array.dtype != np.float32:
            raise _damaged(path, f"{name} is {array.dtype} {array.shape}, expected float32 {(length, width)}")
    return states, actions


def _damaged(path: Path, cause: object) -> InputError:
    return InputError(
        f"{path}: a recorded episode is damaged ({cause}); delete {path.parent}: the same command records it "
        "again"
    )


def _channels(statistics: FeatureStatistics) -> dict[str, Any]:
    """Statistics of frames as lists of three numbers."""
    values = (statistics.minimum, statistics.maximum, statistics.mean, statistics.std)
    return {name: value.ravel().tolist() for name, value in zip(_STATISTICS, values, strict=True)}


def _of_channels(record: JsonRecord, length: int) -> FeatureStatistics:
    values = [np.array(record.numbers(name)).reshape(3, 1, 1) for name in _STATISTICS]
    return FeatureStatistics(*values, count=length)
