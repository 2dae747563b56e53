"""The motion of demonstrations in LIBERO's HDF5 layout: what a replay of them needs, without their frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.sources.interface import DemonstrationReference
from data.sources.libero.hdf5 import (
    Node,
    attribute,
    child_dataset,
    child_group,
    open_hdf5,
    read_numbers,
)
from data.tokens.vocabulary import ACTION_DIM

DISPLACED_ATTRIBUTE = "displaced"
"""Of a demonstration: the hand was moved before its first step, so that a replay would begin elsewhere."""


@dataclass(frozen=True, slots=True)
class Motion:
    """What a replay of a demonstration needs.

    Attributes:
        actions: float64 [T, 7].
        first_physics: Time, positions and velocities of the physics before the first action, float64 [D], as
            robomimic stores them (`states[0]`).
        initial_state: Number of the simulator's initial state; 0 where the file has none.
    """

    actions: NDArray[np.float64]
    first_physics: NDArray[np.float64]
    initial_state: int


def is_displaced(demo: Node) -> bool:
    """Whether the hand was moved before the first step of a demonstration."""
    return attribute(demo, DISPLACED_ATTRIBUTE) == "True"


def read_motion(reference: DemonstrationReference) -> Motion:
    """Read a demonstration without its frames.

    Raises:
        InputError: Its file does not hold the physical states, they are damaged, or it cannot be replayed.
    """
    where = f"{reference.path}: {reference.item}"
    if reference.displaced:
        raise InputError(
            f"{where}: was collected with displaced, from where the hand had been moved to, which the "
            "settling steps of a replay would change; prepare with replay=false"
        )
    with open_hdf5(Path(reference.path)) as file:
        demo = child_group(child_group(file, "data", str(reference.path)), reference.item, where)
        read_numbers(demo, "actions", ACTION_DIM, where, "delta pose 6 + gripper")
        states = child_dataset(demo, "states", where)
        if len(states.shape) != 2 or not states.shape[0] or states.dtype.kind != "f":
            raise InputError(
                f"{where}: states are {states.dtype} {states.shape}, expected the simulator's [T, D]; "
                "prepare with replay=false"
            )
        first = np.asarray(states[0], np.float64)
        if not np.isfinite(first).all():
            raise InputError(f"{where}: states[0] is not finite; delete this demonstration")
        number = attribute(demo, "initial_state_number") or "0"
        return Motion(
            actions=np.asarray(demo["actions"][()], np.float64),
            first_physics=first,
            initial_state=int(number) if number.isdecimal() else 0,
        )
