"""Statistics of features as LeRobot stores them: by dimension of numbers, by channel of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGEST = 255.0  # of a channel; statistics of frames are fractions of it
_CHANNEL_SHAPE = (3, 1, 1)


@dataclass(frozen=True, slots=True)
class FeatureStatistics:
    """Statistics of one feature over `count` time steps.

    Attributes:
        minimum, maximum: [D] in the feature's own type; [3, 1, 1] of a camera.
        mean, std: float64, of the same shape; std is over `count`, not `count - 1`.
        count: Number of time steps.
    """

    minimum: NDArray[Any]
    maximum: NDArray[Any]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    count: int

    @classmethod
    def of_values(cls, values: NDArray[Any]) -> FeatureStatistics:
        """Of a feature [T, D]."""
        numbers = values.astype(np.float64)
        return cls(values.min(0), values.max(0), numbers.mean(0), numbers.std(0), len(values))

    @classmethod
    def combined(cls, parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
        """Over the time steps of all parts together."""
        counts = np.array([part.count for part in parts], np.float64)
        means = np.array([part.mean for part in parts])
        variances = np.array([part.std for part in parts]) ** 2
        mean = np.average(means, axis=0, weights=counts)
        variance = np.average(variances + (means - mean) ** 2, axis=0, weights=counts)
        return cls(
            np.min([part.minimum for part in parts], axis=0),
            np.max([part.maximum for part in parts], axis=0),
            mean,
            np.sqrt(variance),
            int(counts.sum()),
        )

    def to_json(self) -> dict[str, list[Any]]:
        """LeRobot's names: `min`, `max`, `mean`, `std`, `count`."""
        return {
            "min": self.minimum.tolist(),
            "max": self.maximum.tolist(),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "count": [self.count],
        }


class FrameStatistics:
    """Sums over the pixels of a camera's frames, exact in integers."""

    def __init__(self) -> None:
        self._minimum = np.full(3, 255, np.int64)
        self._maximum = np.zeros(3, np.int64)
        self._sum = np.zeros(3, np.int64)
        self._squares = np.zeros(3, np.int64)
        self._pixels = self._frames = 0

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Add one frame uint8 [H, W, 3]."""
        pixels = frame.reshape(-1, 3)
        self._minimum = np.minimum(self._minimum, pixels.min(0))
        self._maximum = np.maximum(self._maximum, pixels.max(0))
        self._sum += pixels.sum(0, dtype=np.int64)
        self._squares += np.square(pixels, dtype=np.int64).sum(0)
        self._pixels += len(pixels)
        self._frames += 1

    def result(self) -> FeatureStatistics:
        """Of all frames so far, at least one: by channel [3, 1, 1], as fractions of white."""
        mean = self._sum / self._pixels
        std = np.sqrt(np.maximum(self._squares / self._pixels - mean**2, 0.0))
        values = [
            (value / _LARGEST).reshape(_CHANNEL_SHAPE) for value in (self._minimum, self._maximum, mean, std)
        ]
        return FeatureStatistics(*values, count=self._frames)
