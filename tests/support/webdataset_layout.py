"""Tar files as stock webdataset writes them, for the tests."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import webdataset
from PIL import Image

from tests.support.lerobot_layout import Recorded

FPS = 10


def write_steps(
    path: Path, episodes: Sequence[tuple[str, Recorded]], arrays: bool = False, first: int = 0
) -> Path:
    """Write each step as a sample: two PNG files, and the numbers in JSON or (`arrays`) in npy files.

    Args:
        path: The tar file.
        episodes: Name and content of each.
        arrays: Whether numbers are in npy files.
        first: Number of the first step of the first episode.
    """
    with writer(path) as out:
        for index, (name, episode) in enumerate(episodes):
            for step in range(episode.length):
                out.write(step_sample(f"{name}_{step + (0 if index else first):06d}", episode, step, arrays))
    return path


def step_sample(key: str, episode: Recorded, step: int, arrays: bool = False) -> dict[str, Any]:
    """One step as a sample of webdataset's writer."""
    frames = list(episode.frames.values())
    numbers = {"action": episode.action[step], "state": episode.state[step]}
    meta: dict[str, Any] = {"instruction": episode.task, "episode": key.rpartition("_")[0]}
    sample: dict[str, Any] = {"__key__": key, "png": png(frames[0][step]), "wrist.png": png(frames[1][step])}
    if arrays:
        sample |= {f"{name}.npy": value for name, value in numbers.items()}
    else:
        meta |= {name: value.tolist() for name, value in numbers.items()}
    return {**sample, "json": meta}


def write_episodes(path: Path, episodes: Sequence[tuple[str, Recorded]]) -> Path:
    """Write each episode as a sample: two MP4 files, tables of numbers as npy files, a text in JSON."""
    with writer(path) as out:
        for name, episode in episodes:
            frames = list(episode.frames.values())
            out.write(
                {
                    "__key__": name,
                    "agent.mp4": mp4(frames[0]),
                    "wrist.mp4": mp4(frames[1]),
                    "actions.npy": episode.action,
                    "states.npy": episode.state,
                    "json": {"language_instruction": episode.task},
                }
            )
    return path


def writer(path: Path) -> Any:
    """The library's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return webdataset.TarWriter(str(path))  # pyright: ignore[reportAttributeAccessIssue]


def png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def mp4(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18"})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
