"""Videos that every browser plays (H.264, yuv420p, MP4), and animated GIFs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.files import replacing


def write_video(path: Path, frames: Sequence[NDArray[np.uint8]], frames_per_second: int) -> None:
    """Write frames uint8 [H, W, 3], all of one even size, as MP4; complete under its name or not at all.

    Raises:
        ValueError: No frames, or odd sizes, which yuv420p cannot hold.
    """
    if not frames:
        raise ValueError("a video needs at least one frame")
    height, width = frames[0].shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"frames are {width} x {height}, yuv420p needs even sizes")
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=frames_per_second, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # x264's own threads would make the bytes depend on the number of cores
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: Path, frames: Sequence[NDArray[np.uint8]], frames_per_second: int) -> None:
    """Write frames uint8 [H, W, 3] as a GIF that loops; complete under its name or not at all.

    GIF counts hundredths of a second: the speed is rounded to them.

    Raises:
        ValueError: No frames.
    """
    if not frames:
        raise ValueError("a GIF needs at least one frame")
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.fromarray(frame) for frame in frames]
    with replacing(path) as temporary:
        first.save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=1000 / frames_per_second,
            loop=0,
        )
