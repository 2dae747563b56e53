"""Frames of a video as one array."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import pytest

from data.errors import InputError
from data.sources.video import decode_video


def grown() -> bytes:
    """An animation of two images, the second of which is larger."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mjpeg", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        other = av.CodecContext.create("mjpeg", "w")
        assert isinstance(other, av.VideoCodecContext)
        other.width, other.height, other.pix_fmt, other.time_base = 64, 48, "yuvj420p", Fraction(1, 10)
        for number, (encoder, size) in enumerate(((stream, (32, 32)), (other, (48, 64)))):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 90, np.uint8), format="rgb24")
            for packet in encoder.encode(frame.reformat(format="yuvj420p")):
                packet.stream, packet.pts, packet.dts = stream, number, number
                container.mux(packet)
    return file.getvalue()


def test_frames_of_several_sizes_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"x: the video has frames of sizes \[\(32, 32, 3\), \(48, 64, 3\)\]"
    ):
        decode_video(grown(), 2, "x")
