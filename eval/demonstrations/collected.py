"""Demonstrations that an earlier `worldvla collect` has recorded: kept by one with the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from data.errors import InputError
from data.sources.libero.motion import DISPLACED_ATTRIBUTE
from eval.demonstrations.hdf5_writer import COLLECTION_ATTRIBUTE
from eval.simulator.interface import TaskInfo

_ATTEMPTS = "attempts"


@dataclass(frozen=True, slots=True)
class Collected:
    """Demonstrations collected for one task.

    Attributes:
        task: The task.
        path: The HDF5 file.
        episodes: Number of demonstrations in it.
        attempts: Number of initial states tried for them.
        steps: Number of time steps of all demonstrations together.
        displaced: Number of demonstrations that begin displaced.
        kept: Whether an earlier command recorded them.
    """

    task: TaskInfo
    path: Path
    episodes: int
    attempts: int
    steps: int
    displaced: int
    kept: bool = False


def read_collected(path: Path, task: TaskInfo, settings: Mapping[str, Any]) -> Collected | None:
    """What is in the file of a task; None: there is no file.

    Args:
        path: Of the file.
        task: The task.
        settings: All that the content follows from beside the task, as `write_demonstrations` was told.

    Raises:
        InputError: The file was made with other settings, or by something else.
    """
    if not path.exists():
        return None
    try:
        with h5py.File(path) as file:
            group: Any = file["data"]
            found: Any = json.loads(group.attrs[COLLECTION_ATTRIBUTE])
            attempts, episodes, steps = (
                int(value) for value in (found.pop(_ATTEMPTS), group.attrs["num_demos"], group.attrs["total"])
            )
            displaced = sum(bool(demo.attrs[DISPLACED_ATTRIBUTE]) for demo in group.values())
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise _refusal(path, "of another writer, or of an earlier version") from error
    if different := [key for key in settings if found.get(key) != settings[key]]:
        changes = "; ".join(f"{key}: found {found.get(key)}, now {settings[key]}" for key in different)
        raise _refusal(path, f"of other settings ({changes})")
    return Collected(task, path, episodes, attempts, steps, displaced, kept=True)


def collection(settings: Mapping[str, Any], attempts: int) -> dict[str, Any]:
    """What `write_demonstrations` notes in the file for `read_collected`."""
    return {**settings, _ATTEMPTS: attempts}


def _refusal(path: Path, what: str) -> InputError:
    return InputError(f"{path}: has demonstrations already, {what}; choose another out, or remove it first")
