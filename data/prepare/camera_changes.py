"""Drawn changes of the camera: pure functions of frames and one draw.

A draw holds for all frames of an episode and camera, so that history and prediction agree. It depends on the
seed of the settings, the episode's key, the camera and the variant alone. Only noise differs between frames:
that of a sensor is fresh in each, so it depends on the number of the frame as well.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from data.augmentation_config import AugmentationConfig

REFERENCE_PIXELS = 256  # side of the frames that the strengths of blur and motion are given for
_GREY = 127.5
_LUMA = np.array([0.299, 0.587, 0.114])  # of grey in red, green and blue (ITU-R BT.601)
_CUBIC_REACH = 3  # pixels around a place that its bicubic interpolation may read

Frames = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class CameraChange:
    """One draw; the defaults change nothing.

    Attributes:
        scale: Side of what is seen, as a share of the recorded sides; above 1 the edges are repeated.
        angle: Radians by which the picture turns (clockwise, as rows count downwards).
        right, down: Place of what is seen, as shares of the sides away from the recorded centre.
        brightness, contrast, saturation: Factors.
        hue: Radians.
        blur: Standard deviation, in pixels of a frame of 256.
        motion, direction: Length, in pixels of a frame of 256, and angle in radians of the line of motion.
        noise: Standard deviation, as a share of 255.
        seed: Of the noise.
    """

    scale: float = 1.0
    angle: float = 0.0
    right: float = 0.0
    down: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    blur: float = 0.0
    motion: float = 0.0
    direction: float = 0.0
    noise: float = 0.0
    seed: int = 0


def draw_change(settings: AugmentationConfig, key: str, camera: str, variant: int) -> CameraChange:
    """Draw the change of an episode's camera.

    Every strength has its own place in the order of random numbers: another strength leaves the draws of the
    others as they are.

    Args:
        settings: Strengths and seed.
        key: Of the episode.
        camera: Name of the camera.
        variant: Number of the variant, from 1.
    """
    name = json.dumps([settings.seed, key, camera, variant])
    digest = hashlib.sha256(name.encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    either: list[float] = random.uniform(-1, 1, 10).tolist()
    share: list[float] = random.uniform(0, 1, 4).tolist()
    cut = settings.crop * share[0]
    return CameraChange(
        scale=(1 - cut) / (1 + settings.zoom) ** either[0],
        angle=math.radians(settings.rotation * either[1]),
        right=settings.shift * either[2] + cut * either[3] / 2,
        down=settings.shift * either[4] + cut * either[5] / 2,
        brightness=1 + settings.brightness * either[6],
        contrast=1 + settings.contrast * either[7],
        saturation=1 + settings.saturation * either[8],
        hue=math.radians(settings.hue * either[9]),
        blur=settings.blur * share[1],
        motion=settings.motion * share[2],
        direction=math.pi * share[3],
        noise=settings.noise * float(random.uniform(0, 1)),
        seed=int.from_bytes(digest[16:24], "little"),
    )


def change_view(frames: Frames, change: CameraChange) -> Frames:
    """Crop, shift, turn and zoom frames uint8 [T, H, W, 3], in one bicubic interpolation.

    What lies outside of the recorded picture is not known: the colours of its edges are repeated.
    """
    if (change.scale, change.angle, change.right, change.down) == (1.0, 0.0, 0.0, 0.0):
        return frames
    _, height, width, _ = frames.shape
    # Places in the recorded picture of places in the changed one: a turn and a scale about the centre.
    cosine, sine = change.scale * math.cos(change.angle), change.scale * math.sin(change.angle)
    x, y = width * (0.5 + change.right), height * (0.5 + change.down)
    left, top = x - cosine * width / 2 - sine * height / 2, y + sine * width / 2 - cosine * height / 2
    corners = [
        (left + cosine * across + sine * along, top - sine * across + cosine * along)
        for across in (0, width)
        for along in (0, height)
    ]
    beyond = max(max(-a, a - width, -b, b - height) for a, b in corners)
    border = max(0, math.ceil(beyond) + _CUBIC_REACH)
    mapping = (cosine, sine, left + border, -sine, cosine, top + border)
    padded = np.pad(frames, ((0, 0), (border, border), (border, border), (0, 0)), mode="edge")
    changed = (
        Image.fromarray(frame).transform(
            (width, height), Image.Transform.AFFINE, mapping, Image.Resampling.BICUBIC
        )
        for frame in padded
    )
    return np.stack([np.asarray(image) for image in changed])


def blur_frames(frames: Frames, change: CameraChange) -> Frames:
    """Blur square frames uint8 [T, P, P, 3]: a Gaussian, then along a line; edges are repeated."""
    pixels = frames.shape[1]
    sigma = change.blur * pixels / REFERENCE_PIXELS
    if sigma:
        gaussian = ImageFilter.GaussianBlur(sigma)
        frames = np.stack([np.asarray(Image.fromarray(frame).filter(gaussian)) for frame in frames])
    return _moved(frames, change.motion * pixels / REFERENCE_PIXELS, change.direction)


def change_colours(frames: Frames, change: CameraChange, first: int = 0) -> Frames:
    """Change the colours of frames uint8 [T, P, P, 3], and add noise.

    Args:
        frames: The frames.
        change: The draw.
        first: Number of the first of them in its episode, from 0.
    """
    matrix, offset = _colour_map(change)
    is_same = np.array_equal(matrix, np.eye(3)) and not offset
    if is_same and not change.noise:
        return frames
    values = frames.astype(np.float32)
    if not is_same:
        values = values @ matrix.T.astype(np.float32) + np.float32(offset)
    if change.noise:
        for number in range(len(values)):
            random = np.random.default_rng([change.seed, first + number])
            noise = random.standard_normal(values.shape[1:], np.float32)
            values[number] += np.float32(255 * change.noise) * noise
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _colour_map(change: CameraChange) -> tuple[NDArray[np.float64], float]:
    """Matrix float64 [3, 3] and offset that make the new colours of the old ones."""
    matrix, offset = np.eye(3), 0.0
    if change.hue:  # a turn about the axis of greys (Rodrigues)
        cosine, third = math.cos(change.hue), (1 - math.cos(change.hue)) / 3
        part = math.sin(change.hue) / math.sqrt(3)
        matrix = cosine * np.eye(3) + third
        matrix += part * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    if change.saturation != 1:
        grey = np.broadcast_to(_LUMA, (3, 3))
        matrix = (change.saturation * np.eye(3) + (1 - change.saturation) * grey) @ matrix
    if change.contrast != 1:
        offset = _GREY * (1 - change.contrast)
    return change.brightness * change.contrast * matrix, offset


def _moved(frames: Frames, length: float, direction: float) -> Frames:
    """The mean of copies along a line of `length` pixels through every pixel."""
    places = np.linspace(-length / 2, length / 2, math.ceil(length) + 1)
    steps = {
        (round(place * math.sin(direction)), round(place * math.cos(direction))) for place in places.tolist()
    }
    if steps == {(0, 0)}:
        return frames
    border = max(max(abs(down), abs(right)) for down, right in steps)
    padded = np.pad(frames, ((0, 0), (border, border), (border, border), (0, 0)), mode="edge")
    height, width = frames.shape[1:3]
    total = np.zeros(frames.shape, np.uint32)
    for down, right in sorted(steps):
        total += padded[:, border + down :, border + right :][:, :height, :width]
    return ((total + len(steps) // 2) // len(steps)).astype(np.uint8)
