"""Demonstrations in LIBERO's HDF5 layout, as LIBERO publishes them and `worldvla collect` writes them.

<task>_demo.hdf5
  data                    attributes problem_info (JSON), macros_image_convention, bddl_file_name, suite
    demo_0
      actions             [T, 7]
      obs/agentview_rgb   uint8 [T, H, W, 3], upside down
      obs/eye_in_hand_rgb the same from the wrist (may be absent)
      obs/ee_states       [T, 6]  position, axis-angle
      obs/gripper_states  [T, 2]
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import h5py  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA, WRIST_CAMERA, Demonstration
from data.errors import InputError
from data.tokens.vocabulary import ACTION_DIM

_Node = Any  # h5py's groups and data sets, whose type stubs leave most members unknown
_CAMERAS = {AGENT_CAMERA: "agentview_rgb", WRIST_CAMERA: "eye_in_hand_rgb"}
_SUFFIXES = (".hdf5", ".h5")


@dataclass(frozen=True, slots=True)
class DemonstrationReference:
    """Where one demonstration lies, known without reading its frames.

    Attributes:
        path: The HDF5 file.
        group: Its name below `data` (``demo_3``).
        key, suite, task, instruction: As in `data.contracts.Demonstration`.
        length: Time steps T.
    """

    path: Path
    group: str
    key: str
    suite: str
    task: str
    instruction: str
    length: int


def list_demonstrations(source: str | Path) -> list[DemonstrationReference]:
    """Every demonstration of a file or of the files in a folder, by file name, then by number.

    Raises:
        InputError: Nothing there, no HDF5, no demonstration in a file, or one without steps.
    """
    found: list[DemonstrationReference] = []
    for path in _files(Path(source)):
        with _opened(path) as file:
            found += _list_file(path, file)
    return found


def read_demonstrations(source: str | Path) -> Iterator[Demonstration]:
    """The demonstrations of `list_demonstrations`, in its order, one at a time."""
    for reference in list_demonstrations(source):
        yield read_demonstration(reference)


def read_demonstration(reference: DemonstrationReference) -> Demonstration:
    """Read and check one demonstration; frames come out upright.

    Raises:
        InputError: A part is missing, of the wrong shape, of another length than the actions, or not
            finite.
    """
    where = f"{reference.path}: {reference.group}"
    with _opened(reference.path) as file:
        data = _group(file, "data", str(reference.path))
        convention = _attribute(data, "macros_image_convention") or "opengl"
        demo = _group(data, reference.group, where)
        actions = _numbers(demo, "actions", ACTION_DIM, where, "delta pose 6 + gripper")
        views = _group(demo, "obs", where)
        steps = len(actions)
        end_effector = _numbers(views, "ee_states", 6, where, "position 3 + axis-angle 3", steps)
        gripper = _numbers(views, "gripper_states", 2, where, "finger positions", steps)
        frames = {
            camera: _upright(_frames(views, name, where, steps), convention, where)
            for camera, name in _CAMERAS.items()
            if camera == AGENT_CAMERA or name in views
        }
    return Demonstration(
        key=reference.key,
        suite=reference.suite,
        task=reference.task,
        instruction=reference.instruction,
        frames=frames,
        actions=actions,
        states=np.concatenate([end_effector, gripper], axis=1),
    )


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(
            f"{source}: no such file or folder; expected LIBERO's HDF5 files, collect some with "
            "`worldvla collect`"
        )
    paths = sorted(p for p in source.iterdir() if p.suffix in _SUFFIXES and not p.name.startswith("."))
    if not paths:
        raise InputError(
            f"{source}: no *.hdf5 file in this folder; expected LIBERO's layout, collect some with "
            "`worldvla collect`"
        )
    return paths


@contextmanager
def _opened(path: Path) -> Generator[_Node, None, None]:
    """Open a file; whatever HDF5 cannot read in it, then or later, is the file's fault."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, TypeError) as error:  # h5py: cut short, broken, a type numpy lacks
        raise InputError(
            f"{path}: not a readable HDF5 file ({error}); copy it again or collect it again"
        ) from error


def _list_file(path: Path, file: _Node) -> list[DemonstrationReference]:
    data = _group(file, "data", str(path))
    names = [name for name in cast("list[str]", list(data)) if re.fullmatch(r"demo_\d{1,9}", name)]
    if not names:
        raise InputError(f"{path}: group `data` holds no demo_0, demo_1, ...; expected LIBERO's layout")
    task = path.stem.removesuffix("_demo")
    suite = _suite(path, data)
    instruction = _instruction(path, data)
    references: list[DemonstrationReference] = []
    for name in sorted(names, key=lambda name: int(name.removeprefix("demo_"))):
        where = f"{path}: {name}"
        length = int(_dataset(_group(data, name, where), "actions", where).shape[0])
        if not length:
            raise InputError(f"{where}: no time steps, expected at least one; delete this demonstration")
        references.append(
            DemonstrationReference(path, name, f"{task}/{name}", suite, task, instruction, length)
        )
    return references


def _suite(path: Path, data: _Node) -> str:
    """Our own attribute, else the folder of the BDDL file (``.../libero_object/<task>.bddl``)."""
    bddl = _attribute(data, "bddl_file_name") or ""
    return _attribute(data, "suite") or PurePosixPath(bddl).parent.name or path.absolute().parent.name


def _instruction(path: Path, data: _Node) -> str:
    text = _attribute(data, "problem_info")
    try:
        found: object = json.loads(text or "")
    except ValueError:
        found = None
    problem = cast("dict[str, object]", found) if isinstance(found, dict) else {}
    instruction = problem.get("language_instruction")
    if isinstance(instruction, list):  # LIBERO's own files keep the words of some tasks in a list
        instruction = " ".join(str(word) for word in cast("list[object]", instruction))
    cleaned = instruction.strip().strip('"').lower() if isinstance(instruction, str) else ""
    if not cleaned:
        raise InputError(
            f"{path}: attribute problem_info of `data` is {str(text)[:60]!r}, expected LIBERO's JSON with a "
            "language_instruction; add it"
        )
    return cleaned


def _attribute(group: _Node, name: str) -> str | None:
    value: object = group.attrs.get(name)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if value is None else str(value)


def _child(parent: _Node, name: str, kind: type[object], where: str) -> _Node:
    """A group or data set that lies in this very file (a link could name any file of the machine)."""
    link: object = parent.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink) or not isinstance(value := parent.get(name), kind):
        raise InputError(
            f"{where}: no {kind.__name__.lower()} `{name}`, expected LIBERO's layout (data/demo_i/actions, "
            "data/demo_i/obs/...); export the demonstration again"
        )
    return value


def _group(parent: _Node, name: str, where: str) -> _Node:
    return _child(parent, name, h5py.Group, where)


def _dataset(group: _Node, name: str, where: str) -> _Node:
    dataset = _child(group, name, h5py.Dataset, where)
    if not dataset.shape or dataset.external or dataset.is_virtual:
        raise InputError(f"{where}: `{name}` is no array stored in this file; export the demonstration again")
    return dataset


def _numbers(
    group: _Node, name: str, width: int, where: str, meaning: str, steps: int | None = None
) -> NDArray[np.float32]:
    """A [T, width] table of finite numbers as float32."""
    dataset = _dataset(group, name, where)
    shape = tuple(int(side) for side in dataset.shape)
    if len(shape) != 2 or shape[1] != width or dataset.dtype.kind not in "fiu":
        raise InputError(
            f"{where}: {name} are {dataset.dtype} {shape}, expected numbers [T, {width}] ({meaning}); "
            "export the demonstration again"
        )
    _check_steps(name, shape[0], steps, where)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as infinite below
        values = np.asarray(dataset[()], dtype=np.float32)
    if not np.isfinite(values).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise InputError(
            f"{where}: {name}[{row}, {column}] is {values[row, column]}, expected a finite number; "
            "delete or repair this demonstration"
        )
    return values


def _frames(group: _Node, name: str, where: str, steps: int) -> NDArray[np.uint8]:
    dataset = _dataset(group, name, where)
    shape = tuple(int(side) for side in dataset.shape)
    if len(shape) != 4 or shape[3] != 3 or dataset.dtype != np.uint8 or 0 in shape[1:3]:
        raise InputError(
            f"{where}: {name} is {dataset.dtype} {shape}, expected uint8 [T, height, width, 3]; "
            "export the demonstration again"
        )
    _check_steps(name, shape[0], steps, where)
    return np.asarray(dataset[()], dtype=np.uint8)


def _check_steps(name: str, found: int, steps: int | None, where: str) -> None:
    if steps is not None and found != steps:
        raise InputError(
            f"{where}: {name} has {found} time steps but actions has {steps}; expected equal lengths, "
            "delete or export this demonstration again"
        )


def _upright(frames: NDArray[np.uint8], convention: str, where: str) -> NDArray[np.uint8]:
    """Rotate by 180 degrees, as LIBERO's policies do; `opencv` files were flipped top to bottom already."""
    if convention == "opengl":
        return frames[:, ::-1, ::-1]
    if convention == "opencv":
        return frames[:, :, ::-1]
    raise InputError(
        f"{where}: macros_image_convention is {convention[:40]!r}, expected opengl or opencv; "
        "correct the attribute"
    )
