"""Frames as they are after the lossy video in which published scores are measured."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.prepare.frames import resize_frames
from eval.video import read_video, write_video

PIXELS = 256  # side of the frames in the video
_FRAMES_PER_SECOND = 10


def through_mp4(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Frames uint8 [N, H, H, 3] -> uint8 [N, 256, 256, 3]: resized, written as H.264 and read back.

    Raises:
        InputError: The folder for temporary files is full.
    """
    resized = resize_frames(frames, PIXELS)
    try:
        with tempfile.TemporaryDirectory(prefix="worldvla-") as folder:
            path = Path(folder) / "frames.mp4"
            write_video(path, list(resized), _FRAMES_PER_SECOND)
            return read_video(path)
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: a video for the published protocol cannot be written "
            f"({error.strerror}); free space there, or set TMPDIR"
        ) from error
