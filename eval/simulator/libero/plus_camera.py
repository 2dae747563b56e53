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
    place = np.asarray(position, dtype=np.float64)
    w, *xyz = quaternion
    orientation = Rotation.from_quat([*xyz, w])
    if view.vertical:
        rotation = _around_y(view.vertical)
        place = np.round(rotation.apply(place - _PIVOT) + _PIVOT, _DIGITS)
        orientation = _rounded(rotation * orientation)
    rotation = Rotation.from_euler("z", view.horizontal, degrees=True)
    place = np.round(rotation.apply(place), _DIGITS)
    orientation = _rounded(rotation * orientation)
    if view.distance != 1.0:
        place = np.round(_PIVOT + view.distance * (place - _PIVOT), _DIGITS)
    if view.turn:
        orientation = _rounded(Rotation.from_euler("z", view.turn, degrees=True) * orientation)
    if view.tilt:
        orientation = _rounded(_around_y(view.tilt) * orientation)
    x, y, z, w = orientation.as_quat()
    return place, np.round(np.array([w, x, y, z], dtype=np.float64), _DIGITS)


def _around_y(degrees: float) -> Rotation:
    return Rotation.from_rotvec([0.0, -np.radians(degrees), 0.0])


def _rounded(rotation):
    return Rotation.from_quat(np.round(rotation.as_quat(), _DIGITS))
