"""What the metadata of a LeRobot data set, format v3.0, say of recorded episodes: paths, features, tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from eval.recording.recorded_episode import CAMERAS
from eval.simulator.interface import CONTROL_FREQUENCY

CAMERA_FEATURES = {
    AGENT_CAMERA: "observation.images.image",
    WRIST_CAMERA: "observation.images.wrist_image",
}
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
DATA_PATH = f"data/{_FILE}.parquet"
VIDEO_PATH = f"videos/{{video_key}}/{_FILE}.mp4"
EPISODES_PATH = f"meta/episodes/{_FILE}.parquet"
FILES_PER_CHUNK = 1000
_ROBOT = "panda"
_DATA_MEGABYTES, _VIDEO_MEGABYTES = 100, 200  # LeRobot's limits of a file, for whoever appends to the set
_STATE_NAMES = ("x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_1", "finger_2")
_ACTION_NAMES = (
    "delta_x",
    "delta_y",
    "delta_z",
    "delta_axis_angle_x",
    "delta_axis_angle_y",
    "delta_axis_angle_z",
    "gripper",
)


def task_table(tasks: Sequence[str]) -> pa.Table:
    """Texts of the tasks, as pandas stores a table whose index they are: LeRobot looks them up by it."""
    columns = [
        {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy_type, "metadata": None}
        for name, kind, numpy_type in (("task_index", "int64", "int64"), ("task", "unicode", "object"))
    ]
    description = {"index_columns": ["task"], "column_indexes": [], "columns": columns}
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(description)})


def dataset_info(lengths: Sequence[int], num_tasks: int, pixels: int) -> dict[str, Any]:
    """The content of `info.json`.

    Args:
        lengths: Number of rows of each episode.
        num_tasks: Number of different task texts.
        pixels: Side of the frames.
    """
    return {
        "codebase_version": "v3.0",
        "robot_type": _ROBOT,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": num_tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": _DATA_MEGABYTES,
        "video_files_size_in_mb": _VIDEO_MEGABYTES,
        "fps": CONTROL_FREQUENCY,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": _features(pixels),
    }


def _features(pixels: int) -> dict[str, Any]:
    video = {
        "video.height": pixels,
        "video.width": pixels,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": CONTROL_FREQUENCY,
        "video.channels": 3,
        "has_audio": False,
    }
    frames = {
        CAMERA_FEATURES[camera]: {
            "dtype": "video",
            "shape": [pixels, pixels, 3],
            "names": ["height", "width", "channels"],
            "info": video,
        }
        for camera in CAMERAS
    }
    numbers: dict[str, tuple[str, Sequence[str] | None]] = {
        "observation.state": ("float32", _STATE_NAMES),
        "action": ("float32", _ACTION_NAMES),
        "next.success": ("bool", None),
        "next.done": ("bool", None),
        "timestamp": ("float32", None),
        **{name: ("int64", None) for name in ("frame_index", "episode_index", "index", "task_index")},
    }
    return frames | {
        name: {"dtype": kind, "shape": [len(names or ("",))], "names": names and list(names)}
        for name, (kind, names) in numbers.items()
    }
