"""Checked parts of HDF5 files of robomimic's layout; nothing outside the file is ever opened."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.sources.parts.array_checks import check_steps, finite_float64
from data.unicode_text import encodable

Node = Any  # h5py's groups and data sets, whose type stubs leave most members unknown


@contextmanager
def open_hdf5(path: Path) -> Generator[Node, None, None]:
    """Open a file; every error of HDF5 inside the block is reported as a damaged file (InputError)."""
    with damage_reported(str(path)), h5py.File(path, "r") as file:
        yield file


@contextmanager
def damage_reported(where: str) -> Generator[None, None, None]:
    """Report every error of HDF5 inside the block as damage of a file or a part of it (InputError)."""
    try:
        yield
    except (OSError, RuntimeError, TypeError) as error:  # h5py: truncated, damaged, a type unknown to numpy
        raise InputError(
            f"{where}: not a readable HDF5 file ({error}); copy it again or collect it again"
        ) from error


def attribute(group: Node, name: str) -> str | None:
    """An attribute as text; None: there is none."""
    value: object = group.attrs.get(name)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else encodable(str(value))


def _child(parent: Node, name: str, kind: type[object], where: str) -> Node:
    """A group or data set stored in this file itself (a link could name any file of the machine)."""
    link: object = parent.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink) or not isinstance(value := parent.get(name), kind):
        raise InputError(
            f"{where}: no {kind.__name__.lower()} `{name}`, expected LIBERO's layout (data/demo_i/actions, "
            "data/demo_i/obs/...); export the demonstration again"
        )
    return value


def child_group(parent: Node, name: str, where: str) -> Node:
    """A group of this file (InputError: there is none)."""
    return _child(parent, name, h5py.Group, where)


def child_dataset(group: Node, name: str, where: str) -> Node:
    """An array stored in this file (InputError: there is none)."""
    dataset = _child(group, name, h5py.Dataset, where)
    if not dataset.shape or dataset.external or dataset.is_virtual:
        raise InputError(f"{where}: `{name}` is no array stored in this file; export the demonstration again")
    return dataset


def read_numbers(
    group: Node, name: str, width: int, where: str, meaning: str, steps: int | None = None
) -> NDArray[np.float64]:
    """Read a table [T, width] of finite numbers as float64.

    Raises:
        InputError: Missing, of another type, shape or length, or not finite.
    """
    dataset = child_dataset(group, name, where)
    shape = tuple(int(side) for side in dataset.shape)
    if len(shape) != 2 or shape[1] != width or dataset.dtype.kind not in "fiu":
        raise InputError(
            f"{where}: {name} are {dataset.dtype} {shape}, expected numbers [T, {width}] ({meaning}); "
            "export the demonstration again"
        )
    check_steps(name, shape[0], steps, where)
    return finite_float64(np.asarray(dataset[()]), name, where)


def read_frames(group: Node, name: str, where: str, steps: int) -> NDArray[np.uint8]:
    """Read frames uint8 [steps, H, W, 3] (InputError: missing, of another type, shape or length)."""
    return np.asarray(frames_dataset(group, name, where, steps)[()], dtype=np.uint8)


def frames_dataset(group: Node, name: str, where: str, steps: int) -> Node:
    """The array of frames uint8 [steps, H, W, 3], unread (InputError as `read_frames`)."""
    dataset = child_dataset(group, name, where)
    shape = tuple(int(side) for side in dataset.shape)
    if len(shape) != 4 or shape[3] != 3 or dataset.dtype != np.uint8 or 0 in shape[1:3]:
        raise InputError(
            f"{where}: {name} is {dataset.dtype} {shape}, expected uint8 [T, height, width, 3]; "
            "export the demonstration again"
        )
    check_steps(name, shape[0], steps, where)
    return dataset
