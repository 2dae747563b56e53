"""Frames of videos, all or those at given times: the only module that reads with PyAV."""

from __future__ import annotations

import io
import math
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from data.errors import InputError
from data.sources.parts.array_checks import MAX_SIDE, check_file, check_steps


def read_video(path: Path, times: NDArray[np.float64], tolerance: float) -> NDArray[np.uint8]:
    """Read the frames shown at `times`, uint8 [T, H, W, 3] in RGB.

    Decoding begins at the key frame before the first time and ends with the last one, so an episode in the
    middle of a long file costs no more than a file of its own.

    Args:
        path: The video.
        times: Seconds from the beginning of the file, ascending.
        tolerance: Largest difference in seconds between a time and its frame's.

    Raises:
        InputError: Missing or damaged file, or no frame at one of the times.
    """
    if not len(times) or bool((np.diff(times) <= 0).any()):
        raise InputError(f"{path}: the rows' timestamps do not ascend; export the data set again")
    check_file(path, "a video")
    moments: list[float] = times.tolist()
    frames = _Frames(len(moments), str(path))
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video; copy the data set again")
            stream = container.streams.video[0]
            if stream.time_base is None:
                raise InputError(f"{path}: its video has no time base; export the data set again")
            start = math.floor(max(0.0, moments[0] - tolerance) / stream.time_base)
            container.seek(start, stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is None or frame.time < moments[frames.count] - tolerance:
                    continue
                if frame.time > moments[frames.count] + tolerance:
                    break
                frames.add(frame)
                if frames.count == len(moments):
                    break
    except (FFmpegError, OSError, UnicodeDecodeError) as error:  # the last: names in the file
        raise InputError(f"{path}: not a readable video ({error}); copy the data set again") from error
    if frames.count < len(moments):
        raise InputError(
            f"{path}: no frame at {moments[frames.count]:.3f} s (within {tolerance:.3f} s), time step "
            f"{frames.count} of {len(moments)}; the video is cut short or its rate is not the metadata's"
        )
    return frames.film


def decode_video(content: bytes, steps: int, where: str) -> NDArray[np.uint8]:
    """Decode all frames of a video, uint8 [steps, H, W, 3] in RGB.

    Raises:
        InputError: No video, damaged, its frames are too large, or it has another number of them.
    """
    frames = _Frames(steps, where)
    try:
        with av.open(io.BytesIO(content), "r") as container:
            if not container.streams.video:
                raise InputError(f"{where}: holds no video; copy the data set again")
            stream = container.streams.video[0]
            if max(stream.width, stream.height) > MAX_SIDE:
                raise InputError(
                    f"{where}: a video of {stream.width} x {stream.height} pixels, expected at most "
                    f"{MAX_SIDE} a side"
                )
            for frame in container.decode(stream):
                if frames.count == steps:
                    raise InputError(
                        f"{where}: has more frames than {steps} time steps; export the demonstration again"
                    )
                frames.add(frame)
    except (FFmpegError, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: not a readable video ({error}); copy the data set again") from error
    check_steps("the video", frames.count, steps, where)
    return frames.film


class _Frames:
    """Frames of one size in one array; a list of them and its stack would hold each twice.

    Args:
        steps: T, how many there will be.
        where: Leads the messages.

    Attributes:
        count: Those added so far.
        film: uint8 [T, H, W, 3].
    """

    def __init__(self, steps: int, where: str) -> None:
        self.count, self.film = 0, np.empty((0, 0, 0, 3), np.uint8)
        self._steps, self._where = steps, where

    def add(self, frame: av.VideoFrame) -> None:
        """Add the next frame (InputError: of another size than the first)."""
        picture = frame.to_ndarray(format="rgb24")
        if not self.count:
            self.film = np.empty((self._steps, *picture.shape), np.uint8)
        elif picture.shape != self.film.shape[1:]:
            sizes = sorted([picture.shape, self.film.shape[1:]])
            raise InputError(f"{self._where}: the video has frames of sizes {sizes}, expected one size")
        self.film[self.count] = picture
        self.count += 1
