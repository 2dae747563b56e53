"""Sensor noise of LIBERO-Plus: five kinds of ten severities, put onto the agent camera's frames.

They are those of ImageNet-C (Hendrycks and Dietterich 2019) with LIBERO-Plus' own parameters, defined on
frames of 256 px. Here every frame's random numbers come from its own seed: an episode can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NOISE_PIXELS = 256
_SEVERITIES = 10  # of each kind
_LAST_SHUFFLED = 224  # rows and columns of a frame that glass blur shuffles, whatever its size

Frame = NDArray[np.float64]
"""[256, 256, 3], 0 to 1."""

_MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))
_ZOOM_STEPS = (0.01, 0.01, 0.02, 0.02, 0.03, 0.01, 0.01, 0.02, 0.02, 0.03)
_FOG_DECAY = (3.0, 2.8, 2.5, 2.2, 2.0, 1.8, 1.6, 1.5, 1.4, 1.3)
_GLASS = (
    (0.5, 1, 3),
    (0.7, 1, 3),
    (0.9, 2, 3),
    (1.0, 2, 2),
    (1.1, 3, 2),
    (1.3, 3, 2),
    (1.5, 4, 2),
    (1.8, 4, 2),
    (2.2, 5, 1),
    (2.5, 5, 1),
)


@dataclass(frozen=True, slots=True)
class SensorNoise:
    """One kind of noise.

    Attributes:
        number: 1 to 50, as in the tasks' names: motion, Gaussian, zoom, fog and glass, ten severities each.
    """

    number: int

    def apply(self, frame: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.uint8]:
        """A frame uint8 [256, 256, 3], as MuJoCo draws it (upside down), with the noise."""
        kind, severity = divmod(self.number - 1, _SEVERITIES)
        noisy = _KINDS[kind](frame / 255.0, severity, random)
        return (np.clip(noisy, 0, 1) * 255).astype(np.uint8)

    def shown(self, frame: NDArray[np.uint8], pixels: int, seed: Sequence[int]) -> NDArray[np.uint8]:
        """An upright frame uint8 [256, 256, 3] with the noise of a seed, resized to [pixels, pixels, 3]."""
        noisy = self.apply(frame[::-1, ::-1], np.random.default_rng(seed))[::-1, ::-1]
        if pixels == NOISE_PIXELS:
            return np.ascontiguousarray(noisy)
        return np.asarray(Image.fromarray(noisy).resize((pixels, pixels), Image.Resampling.BOX))


def _motion_blur(frame: Frame, severity: int, random: np.random.Generator) -> Frame:
    """Half a Gaussian along a line through every pixel, as ImageMagick's motion blur; edges are repeated."""
    radius, sigma = _MOTION[severity]
    angle = np.radians(random.uniform(-45, 45))
    width = 2 * radius + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    side = np.arange(len(frame))
    blurred = np.zeros_like(frame)
    for distance, weight in enumerate(weights):
        down = np.clip(side + np.ceil(distance * np.sin(angle) - 0.5).astype(int), 0, len(frame) - 1)
        right = np.clip(side + np.ceil(distance * np.cos(angle) - 0.5).astype(int), 0, len(frame) - 1)
        blurred += weight * frame[down][:, right]
    return blurred


def _gaussian_blur(frame: Frame, severity: int, random: np.random.Generator) -> Frame:
    return _gaussian(frame, severity + 1)


def _gaussian(frame: Frame, sigma: float) -> Frame:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(frame, (sigma, sigma, 0), mode="nearest")


def _zoom_blur(frame: Frame, severity: int, random: np.random.Generator) -> Frame:
    """The mean of the frame and of ever larger views of its middle."""
    step = _ZOOM_STEPS[severity]
    factors = np.arange(1, round(1.11 + 0.05 * severity, 2), step)
    total = frame.astype(np.float32)
    single = total.copy()
    for factor in factors:
        total += _zoomed(single, float(factor))
    return (total / (len(factors) + 1)).astype(np.float64)


def _zoomed(frame: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    from scipy.ndimage import zoom

    side = len(frame)
    kept = int(np.ceil(side / factor))
    first = (side - kept) // 2
    middle = frame[first : first + kept, first : first + kept]
    larger = np.asarray(zoom(middle, (factor, factor, 1), order=1), dtype=np.float32)
    margin = (len(larger) - side) // 2
    return larger[margin : margin + side, margin : margin + side]


def _fog(frame: Frame, severity: int, random: np.random.Generator) -> Frame:
    density = 0.5 * (severity + 1)
    brightest = frame.max()
    fogged = frame + density * _plasma(_FOG_DECAY[severity], random)[..., np.newaxis]
    return fogged * brightest / (brightest + density)


def _plasma(decay: float, random: np.random.Generator) -> NDArray[np.float64]:
    """A random landscape [256, 256], 0 to 1, by the diamond-square algorithm on a torus."""
    heights = np.zeros((NOISE_PIXELS, NOISE_PIXELS))
    step, amplitude = NOISE_PIXELS, 100.0
    while step >= 2:
        half = step // 2

        def displaced(corners: NDArray[np.float64], by: float = amplitude) -> NDArray[np.float64]:
            return corners / 4 + by * random.uniform(-by, by, corners.shape)

        squares = heights[::step, ::step]
        corners = squares + np.roll(squares, -1, axis=0)
        corners = corners + np.roll(corners, -1, axis=1)
        heights[half::step, half::step] = displaced(corners)
        middles, squares = heights[half::step, half::step], heights[::step, ::step]
        vertical = middles + np.roll(middles, 1, axis=0)
        heights[::step, half::step] = displaced(vertical + squares + np.roll(squares, -1, axis=1))
        horizontal = middles + np.roll(middles, 1, axis=1)
        heights[half::step, ::step] = displaced(horizontal + squares + np.roll(squares, -1, axis=0))
        step, amplitude = half, amplitude / decay
    heights -= heights.min()
    return heights / heights.max()


def _glass_blur(frame: Frame, severity: int, random: np.random.Generator) -> Frame:
    """Pixels take the colour of near ones, one after the other, between two Gaussian blurs.

    LIBERO-Plus means to exchange them, but its assignment of numpy's views copies one over the other.
    """
    sigma, reach, rounds = _GLASS[severity]
    pixels = (_gaussian(frame, sigma) * 255).astype(np.uint8)
    places = range(_LAST_SHUFFLED - reach, reach, -1)
    offsets = random.integers(-reach, reach, (rounds, len(places), len(places), 2)).tolist()
    rows = [list(map(bytes, row)) for row in pixels]  # lists of whole pixels: faster than slices of an array
    for by_row in offsets:
        for y, by_column in zip(places, by_row, strict=True):
            for x, (right, down) in zip(places, by_column, strict=True):
                rows[y][x] = rows[y + down][x + right]
    shuffled = np.frombuffer(b"".join(b"".join(row) for row in rows), np.uint8).reshape(pixels.shape)
    return _gaussian(shuffled / 255.0, sigma)


_KINDS: tuple[Callable[[Frame, int, np.random.Generator], Frame], ...] = (
    _motion_blur,
    _gaussian_blur,
    _zoom_blur,
    _fog,
    _glass_blur,
)
