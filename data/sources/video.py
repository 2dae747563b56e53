"""Frames of a video file at given times: the one door to PyAV for reading."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from data.errors import InputError
from data.sources.array_checks import stack_frames


def read_frames(path: Path, times: NDArray[np.float64], tolerance: float) -> NDArray[np.uint8]:
    """The frames shown at `times`, uint8 [T, H, W, 3] in RGB.

    Decoding begins at the key frame before the first time and ends with the last one, so an episode in the
    middle of a long file costs no more than one of its own.

    Args:
        path: The video.
        times: Seconds from the beginning of the file, ascending.
        tolerance: Largest difference in seconds between a time and its frame's.

    Raises:
        InputError: No such file, broken, or no frame at one of the times.
    """
    if not len(times) or bool((np.diff(times) <= 0).any()):
        raise InputError(f"{path}: the rows' timestamps do not ascend; export the data set again")
    wanted: list[float] = times.tolist()
    frames: list[NDArray[np.uint8]] = []
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no video; copy the data set again")
            stream = container.streams.video[0]
            if stream.time_base is None:
                raise InputError(f"{path}: its video tells no time; export the data set again")
            start = math.floor(max(0.0, wanted[0] - tolerance) / stream.time_base)
            container.seek(start, stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is None or frame.time < wanted[len(frames)] - tolerance:
                    continue
                if frame.time > wanted[len(frames)] + tolerance:
                    break
                frames.append(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False))
                if len(frames) == len(wanted):
                    break
    except (FFmpegError, OSError, UnicodeDecodeError) as error:  # the last: names in the file
        raise InputError(f"{path}: not a readable video ({error}); copy the data set again") from error
    if len(frames) < len(wanted):
        raise InputError(
            f"{path}: no frame at {wanted[len(frames)]:.3f} s (within {tolerance:.3f} s), time step "
            f"{len(frames)} of {len(wanted)}; the video is cut short or its rate is not the metadata's"
        )
    return stack_frames(frames, "the video", str(path))
