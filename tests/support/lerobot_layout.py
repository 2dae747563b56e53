"""Small LeRobot data sets of both layouts, written from the format's description, for the tests."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

FPS = 10
CAMERAS = ("observation.images.image", "observation.images.wrist_image")
PIXELS = 64


@dataclass
class Recorded:
    """What is written for one episode: frames by camera uint8 [T, H, W, 3], action [T, 7], state [T, 8]."""

    task: str
    frames: dict[str, np.ndarray]
    action: np.ndarray
    state: np.ndarray

    @property
    def length(self) -> int:
        return len(self.action)


def recorded(steps: int, seed: int, task: str = "Lift the cube", pixels: int = PIXELS) -> Recorded:
    """Flat frames of slowly changing colour, which a video keeps to within a few grey levels."""
    random = np.random.default_rng(seed)
    frames = {}
    for camera in CAMERAS:
        levels = random.integers(20, 236, (steps, 2)).astype(np.uint8)
        half = np.repeat(
            np.repeat(levels[:, :, None], pixels, 1).reshape(steps, pixels, 2, 1), pixels // 2, 2
        )
        frames[camera] = np.repeat(half.reshape(steps, pixels, pixels, 1), 3, axis=3)
    action = random.uniform(-0.5, 0.5, (steps, 7)).astype(np.float32)
    state = random.normal(size=(steps, 8)).astype(np.float32)
    return Recorded(task, frames, action, state)


def write_lerobot(
    folder: Path, version: str, episodes: list[Recorded], stored: str = "video", codec: str = "libx264"
) -> Path:
    """Write a data set; `stored` is `video` or `image`. v3.0 puts all episodes into one table and video."""
    features: dict[str, Any] = {
        "action": {"dtype": "float32", "shape": [7], "names": None},
        "observation.state": {"dtype": "float32", "shape": [8], "names": None},
        **{camera: {"dtype": stored, "shape": [PIXELS, PIXELS, 3], "names": None} for camera in CAMERAS},
        **{name: {"dtype": "int64", "shape": [1]} for name in ("frame_index", "episode_index", "task_index")},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    newest = version == "v3.0"
    info: dict[str, Any] = {
        "codebase_version": version,
        "robot_type": "panda",
        "fps": FPS,
        "chunks_size": 1000,
        "total_episodes": len(episodes),
        "splits": {"train": f"0:{len(episodes)}"},
        "features": features,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if newest
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if newest
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    write = _write_v3 if newest else _write_v2
    write(folder, episodes, stored, codec)
    return folder


def write_video(path: Path, frames: np.ndarray, codec: str = "libx264") -> None:
    """One video at `FPS`, a key frame every second frame as LeRobot encodes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=FPS, options={"g": "2", "crf": "18"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _rows(episode: Recorded, number: int, stored: str) -> dict[str, Any]:
    rows: dict[str, Any] = {
        "action": list(episode.action),
        "observation.state": list(episode.state),
        "timestamp": (np.arange(episode.length) / FPS).astype(np.float32),
        "frame_index": np.arange(episode.length),
        "episode_index": np.full(episode.length, number),
        "task_index": np.zeros(episode.length, np.int64),
    }
    if stored == "image":
        for camera, frames in episode.frames.items():
            rows[camera] = [{"bytes": _png(frame), "path": "frame.png"} for frame in frames]
    return rows


def _png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def _write_table(path: Path, rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), path)


def _write_v2(folder: Path, episodes: list[Recorded], stored: str, codec: str) -> None:
    lines = []
    for i, episode in enumerate(episodes):
        lines.append(json.dumps({"episode_index": i, "tasks": [episode.task], "length": episode.length}))
        _write_table(folder / f"data/chunk-000/episode_{i:06d}.parquet", _rows(episode, i, stored))
        if stored == "video":
            for camera, frames in episode.frames.items():
                write_video(folder / f"videos/chunk-000/{camera}/episode_{i:06d}.mp4", frames, codec)
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "meta" / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": episodes[0].task}))


def _write_v3(folder: Path, episodes: list[Recorded], stored: str, codec: str) -> None:
    parts = [_rows(episode, i, stored) for i, episode in enumerate(episodes)]
    joined = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    _write_table(folder / "data/chunk-000/file-000.parquet", joined)
    begins = np.cumsum([0, *(episode.length for episode in episodes)])
    meta: dict[str, Any] = {
        "episode_index": list(range(len(episodes))),
        "tasks": [[episode.task] for episode in episodes],
        "length": [episode.length for episode in episodes],
        "data/chunk_index": [0] * len(episodes),
        "data/file_index": [0] * len(episodes),
        "dataset_from_index": begins[:-1].tolist(),
        "dataset_to_index": begins[1:].tolist(),
    }
    for camera in CAMERAS if stored == "video" else ():
        joined_frames = np.concatenate([episode.frames[camera] for episode in episodes])
        write_video(folder / f"videos/{camera}/chunk-000/file-000.mp4", joined_frames, codec)
        meta[f"videos/{camera}/chunk_index"] = [0] * len(episodes)
        meta[f"videos/{camera}/file_index"] = [0] * len(episodes)
        meta[f"videos/{camera}/from_timestamp"] = (begins[:-1] / FPS).tolist()
        meta[f"videos/{camera}/to_timestamp"] = (begins[1:] / FPS).tolist()
    _write_table(folder / "meta/episodes/chunk-000/file-000.parquet", meta)
    tasks = sorted({episode.task for episode in episodes})
    _write_table(folder / "meta/tasks.parquet", {"task_index": list(range(len(tasks))), "task": tasks})
