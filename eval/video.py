"""Videos that every browser plays (H.264, yuv420p, MP4), and animated GIFs."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image

from data.files import replacing


def write_video(path: Path, frames: Sequence[NDArray[np.uint8]], frames_per_second: int) -> None:
    """Write frames uint8 [H, W, 3], all of one even size, as MP4; complete under its name or not at all.

    Raises:
        ValueError: No frames, or odd sizes, which yuv420p cannot hold.
        OSError: It cannot be written.
    """
    if not frames:
        raise ValueError("a video needs at least one frame")
    height, width = frames[0].shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"frames are {width} x {height}, yuv420p needs even sizes")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            _encode(temporary, frames, frames_per_second)
        except FFmpegError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _encode(path: Path, frames: Sequence[NDArray[np.uint8]], frames_per_second: int) -> None:
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=frames_per_second, options={"crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # x264's own threads would make the bytes depend on the number of cores
        stream.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> NDArray[np.uint8]:
    """All frames of a video, uint8 [T, H, W, 3].

    Raises:
        OSError: It cannot be read or decoded.
    """
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return np.stack(frames).astype(np.uint8, copy=False)


class VideoInMemory:
    """An MP4 (H.264, yuv420p) that is encoded frame by frame and kept in memory.

    Every second frame is a key frame and no frame needs a later one, as LeRobot encodes its videos: a single
    frame is found without decoding those far before it.

    Args:
        pixels: Side of the frames, even.
        frames_per_second: At which it is played.
    """

    def __init__(self, pixels: int, frames_per_second: int) -> None:
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        options = {"crf": "18", "g": "2", "bf": "0"}
        self._stream = self._container.add_stream("libx264", rate=frames_per_second, options=options)
        self._stream.width, self._stream.height, self._stream.pix_fmt = pixels, pixels, "yuv420p"
        # x264's own threads would make the bytes depend on the number of cores
        self._stream.thread_count = 1

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append one frame uint8 [pixels, pixels, 3]."""
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))

    def finish(self) -> bytes:
        """The whole file; no frame can be added after it."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._file.getvalue()


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


@dataclass(frozen=True)
class VideoPreview:
    """What is shown of a video before it is played.

    Attributes:
        last_frame: uint8 [H, W, 3].
        frames_per_second: At which it is played.
    """

    last_frame: NDArray[np.uint8]
    frames_per_second: float


def read_preview(path: Path) -> VideoPreview | None:
    """The last frame and the speed of a video; None where it cannot be decoded."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            last = deque(container.decode(stream), maxlen=1)
            if not last or stream.average_rate is None:
                return None
            frame = last[0].to_ndarray(format="rgb24").astype(np.uint8, copy=False)
            return VideoPreview(frame, float(stream.average_rate))
    except (FFmpegError, IndexError):  # no video at all, or one without a video stream
        return None
