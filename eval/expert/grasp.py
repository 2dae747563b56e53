"""Where to grasp an object: across its narrow side, or at the rim, clear of its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eval.expert.arm import nearest_turn
from eval.simulator.interface import Simulator

_RIMMED = ("bowl", "mug", "ramekin", "moka", "basket")  # too wide for the hand: grasped at the rim
_RIM_INSET = 0.006
_RIM_DEPTH = 0.012
_PALM = 0.035  # m from the grip point up to the palm
_HAND_OPENING = 0.072  # widest object that fits between the open fingers
_ANGLES = np.arange(0.0, np.pi, np.pi / 24)
_NEIGHBOURHOOD = 0.2


@dataclass(frozen=True, slots=True)
class Grasp:
    """A grasp from above.

    Attributes:
        position: Of the grip point, [3].
        yaw: Direction in which the fingers open, radians about z.
        top, bottom: Highest and lowest point of the object.
    """

    position: NDArray[np.float64]
    yaw: float
    top: float
    bottom: float


def plan_grasp(simulator: Simulator, name: str, current_yaw: float) -> Grasp:
    """Plan a grasp of the object called `name`, turning the hand little from `current_yaw`."""
    corners = simulator.corners(name)
    top, bottom = float(corners[:, 2].max()), float(corners[:, 2].min())
    if any(kind in name for kind in _RIMMED):
        return _rim_grasp(corners, top, bottom, current_yaw)
    height = max(bottom + 0.012, top - _PALM if top - bottom > 0.05 else (top + bottom) / 2)
    neighbours = [simulator.corners(other) for other in simulator.objects() if other != name]
    obstacles = np.concatenate(neighbours) if neighbours else np.zeros((0, 3))
    centre, yaw = _across(corners[:, :2], obstacles, height, current_yaw)
    return Grasp(np.array([*centre, height]), nearest_turn(yaw, current_yaw), top, bottom)


def _rim_grasp(corners: NDArray[np.float64], top: float, bottom: float, current_yaw: float) -> Grasp:
    """One finger inside, one outside of the rim, on the side away from the robot's left."""
    low, high = corners[:, :2].min(axis=0), corners[:, :2].max(axis=0)
    radius = float((high - low).mean()) / 2
    centre = (low + high) / 2 + np.array([0.0, radius - _RIM_INSET])
    return Grasp(np.array([*centre, top - _RIM_DEPTH]), nearest_turn(np.pi / 2, current_yaw), top, bottom)


def _across(
    outline: NDArray[np.float64], obstacles: NDArray[np.float64], height: float, current_yaw: float
) -> tuple[NDArray[np.float64], float]:
    """Centre [2] and yaw of the best grasp across an outline [N, 2].

    Every direction is tried at several positions along the object; the cost is the width between the
    fingers, plus a little for turning and for distance from the middle, and much for touching a neighbour.
    """
    middle = (outline.max(axis=0) + outline.min(axis=0)) / 2
    near = np.linalg.norm(obstacles[:, :2] - middle, axis=1) < _NEIGHBOURHOOD
    obstacles = obstacles[near & (obstacles[:, 2] > height - 0.01)]
    at_palm = obstacles[obstacles[:, 2] > height + 0.025][:, :2]
    best: tuple[float, NDArray[np.float64], float] | None = None
    for yaw in _ANGLES:
        across = np.array([np.cos(yaw), np.sin(yaw)])
        along = np.array([-across[1], across[0]])
        u, v = outline @ across, outline @ along
        width, length = float(np.ptp(u)), float(np.ptp(v))
        turn = abs(nearest_turn(yaw, current_yaw) - current_yaw)
        for offset in (0.0, 0.25, -0.25, 0.4, -0.4) if length >= 0.05 else (0.0,):
            v_middle = (v.max() + v.min()) / 2 + offset * (length - 0.02)
            centre = across * (u.max() + u.min()) / 2 + along * v_middle
            hits = fingers_hit(obstacles[:, :2], centre, across, along)
            hits += _palm_hits(at_palm, centre, across, along)
            too_wide = 100.0 * max(0.0, width - _HAND_OPENING)
            cost = width + too_wide + 0.02 * abs(offset) + 0.004 * turn + 10.0 * hits
            if best is None or cost < best[0]:
                best = (cost, centre, float(yaw))
    if best is None:
        raise ValueError("no directions to try")
    return best[1], best[2]


def fingers_hit(
    points: NDArray[np.float64],
    centre: NDArray[np.float64],
    across: NDArray[np.float64],
    along: NDArray[np.float64],
) -> bool:
    """Whether an open finger would hit one of the points [N, 2]."""
    u, v = np.abs((points - centre) @ across), np.abs((points - centre) @ along)
    return bool(((u > 0.030) & (u < 0.068) & (v < 0.020)).any())


def _palm_hits(
    points: NDArray[np.float64],
    centre: NDArray[np.float64],
    across: NDArray[np.float64],
    along: NDArray[np.float64],
) -> bool:
    """Whether the palm would touch one of the points [N, 2] that reach up to it."""
    u, v = np.abs((points - centre) @ across), np.abs((points - centre) @ along)
    return bool(((u < 0.11) & (v < 0.036)).any())
