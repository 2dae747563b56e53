"""Camera viewpoints of LIBERO-Plus: the agent camera, turned around the table, moved away and tilted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

_PIVOT = np.array([0.0, 0.0, 0.8])  # metres, above the middle of the table
_DIGITS = 4  # LIBERO-Plus rounds after every movement


@dataclass(frozen=True, slots=True)
class CameraView:
    """Movements of the agent camera, in the order in which they are made; angles in degrees.

    Attributes:
        horizontal: Around the world's vertical axis.
        vertical: Up, around the horizontal axis through the pivot; made before `horizontal`.
        distance: Factor of the distance from the pivot.
        turn: Of the camera alone, around the vertical axis.
        tilt: Of the camera alone, around the world's y axis.
    """

    horizontal: int = 0
    vertical: int = 0
    distance: float = 1.0
    turn: int = 0
    tilt: int = 0


def moved_camera(
    position: Sequence[float], quaternion: Sequence[float], view: CameraView
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Position [3] in metres and quaternion (w, x, y, z) [4] of a camera after the movements of a view."""
    place, orientation = np.asarray(position, dtype=np.float64), np.asarray(quaternion, dtype=np.float64)
    if view.vertical:
        rotation = _around_y(view.vertical)
        place = _rounded(rotation.apply(place - _PIVOT) + _PIVOT)
        orientation = _turned(orientation, rotation)
    rotation = _around_z(view.horizontal)
    place, orientation = _rounded(rotation.apply(place)), _turned(orientation, rotation)
    if view.distance != 1.0:
        place = _rounded(_PIVOT + (place - _PIVOT) * view.distance)
    if view.turn:
        orientation = _turned(orientation, _around_z(view.turn))
    if view.tilt:
        orientation = _turned(orientation, _around_y(view.tilt))
    return place, orientation


def _around_y(degrees: float) -> Rotation:
    return Rotation.from_rotvec([0.0, -np.radians(degrees), 0.0])


def _around_z(degrees: float) -> Rotation:
    return Rotation.from_euler("z", degrees, degrees=True)


def _turned(quaternion: NDArray[np.float64], rotation: Rotation) -> NDArray[np.float64]:
    w, *xyz = quaternion
    x, y, z, w = (rotation * Rotation.from_quat([*xyz, w])).as_quat()
    return _rounded(np.array([w, x, y, z]))


def _rounded(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([round(float(value), _DIGITS) for value in values])
