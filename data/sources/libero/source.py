"""Demonstrations in LIBERO's HDF5 layout, as LIBERO publishes them and `worldvla collect` writes them.

<task>_demo.hdf5
  data                    attributes problem_info (JSON), macros_image_convention, bddl_file_name, suite,
                          tag, state_orientation; all may be absent
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data.config import SourceConfig
from data.contracts import AGENT_CAMERA, DEFAULT_EMBODIMENT, WRIST_CAMERA, Demonstration, Embodiment
from data.errors import InputError
from data.sources.files.source_files import SourceFiles, open_files
from data.sources.interface import DemonstrationReference
from data.sources.libero.hdf5 import (
    Node,
    attribute,
    child_dataset,
    child_group,
    damage_reported,
    frames_dataset,
    open_hdf5,
    read_frames,
    read_numbers,
)
from data.sources.libero.language import LIBERO_SUITE_NAMES, libero_language
from data.sources.libero.motion import is_displaced
from data.sources.no_ops import NoOpRule, moving_steps
from data.tokens.vocabulary import ACTION_DIM
from data.unicode_text import encodable, is_blank, printable

_CAMERAS = {AGENT_CAMERA: "agentview_rgb", WRIST_CAMERA: "eye_in_hand_rgb"}
COLLECTED_TAG = "worldvla-expert"
ORIENTATION_ATTRIBUTE, HAND_ORIENTATION = "state_orientation", "hand_body"
"""In files of `worldvla collect`. Those of earlier versions lack it: their states have the orientation of the
grip site, which is turned by 90 degrees against the hand's."""

_SUITE_FOLDER = re.compile(r"libero_(spatial|object|goal|10|90)(?![0-9a-z])")
_MIN_WORDS = 2  # of an instruction that is read from the name of a file
HDF5_SUFFIXES = (".hdf5", ".h5")


class LiberoSource:
    """Reads the HDF5 files of a folder, or one file.

    Args:
        config: `cameras` maps to names below `obs`; `rotate` false reads frames as they are stored. All other
            names are fixed by the layout.
        files: Of the source; None: opened here.

    Raises:
        InputError: They are in an object store, or a setting names what the layout fixes.
    """

    def __init__(self, config: SourceConfig, files: SourceFiles | None = None) -> None:
        self.files = open_files(config) if files is None else files
        if not isinstance(self.files.root, Path):
            raise InputError(
                f"source={config.source}: HDF5 files are read in a file system only; copy or mount the "
                "folder, then give its path"
            )
        self._source = self.files.root
        self._cameras = config.cameras.requested()
        self._rotate = config.rotate
        self._no_ops = NoOpRule.of(DEFAULT_EMBODIMENT.action, config.no_ops)

    def embodiment(self) -> Embodiment:
        """LIBERO's."""
        return DEFAULT_EMBODIMENT

    def no_ops(self) -> NoOpRule:
        """LIBERO's, or as the settings say."""
        return self._no_ops

    def references(self) -> list[DemonstrationReference]:
        """Every demonstration, by file name, then by number.

        A file that cannot be read is listed as one demonstration with a fault.

        Raises:
            InputError: There is no file.
        """
        paths = hdf5_files(self._source)
        if not paths:
            raise InputError(
                f"{self._source}: no *.hdf5 file in this folder; expected LIBERO's layout, collect some with "
                "`worldvla collect`"
            )
        references: list[DemonstrationReference] = []
        for path in paths:
            try:
                with open_hdf5(path) as file:
                    references += self._list_file(path, file)
            except InputError as error:  # counts as one demonstration: how many it holds is unknown
                references.append(_unlisted(path, error))
        return references

    def checked(self, references: Iterable[DemonstrationReference]) -> Iterator[DemonstrationReference]:
        """The same references, with the faults of their parts; frames are not read."""
        for path, same in groupby(references, key=lambda reference: reference.path):
            group = list(same)
            try:
                with open_hdf5(Path(path)) as file:
                    data = child_group(file, "data", str(path))
                    found = [self._checked(reference, data) for reference in group]
            except InputError as error:
                found = [replace(reference, fault=reference.fault or str(error)) for reference in group]
            yield from found

    def read(self, reference: DemonstrationReference) -> Demonstration:
        """Read and check one demonstration; frames are upright.

        Raises:
            InputError: A part is missing, of the wrong shape, of another length than the actions, or not
                finite.
        """
        where = f"{reference.path}: {reference.item}"
        with open_hdf5(Path(reference.path)) as file:
            data = child_group(file, "data", str(reference.path))
            convention = attribute(data, "macros_image_convention") or "opengl"
            demo = child_group(data, reference.item, where)
            actions, states = _actions_and_states(demo, where)
            views, steps = child_group(demo, "obs", where), len(actions)
            frames: dict[str, NDArray[np.uint8]] = {}
            for camera, name in self._cameras_of(views).items():
                stored = read_frames(views, name, where, steps)
                frames[camera] = stored if self._rotate is False else _upright(stored, convention, where)
        return reference.demonstration(frames, actions, states)

    def _checked(self, reference: DemonstrationReference, data: Node) -> DemonstrationReference:
        """A reference with what its parts in group `data` tell."""
        if reference.fault:
            return reference
        where = f"{reference.path}: {reference.item}"
        try:
            with damage_reported(where):
                demo = child_group(data, reference.item, where)
                actions, _ = _actions_and_states(demo, where)
                views = child_group(demo, "obs", where)
                for name in self._cameras_of(views).values():
                    frames_dataset(views, name, where, len(actions))
        except InputError as error:
            return replace(reference, fault=str(error))
        return replace(reference, idle=not moving_steps(actions, self._no_ops).any())

    def _cameras_of(self, views: Node) -> Mapping[str, str]:
        """Our camera -> name in the file. The wrist camera may be absent unless it is requested."""
        if self._cameras:
            return self._cameras
        return {camera: name for camera, name in _CAMERAS.items() if camera == AGENT_CAMERA or name in views}

    def _list_file(self, path: Path, file: Node) -> list[DemonstrationReference]:
        data = child_group(file, "data", str(path))
        names = [name for name in cast("list[str]", list(data)) if re.fullmatch(r"demo_\d{1,9}", name)]
        if not names:
            raise InputError(f"{path}: group `data` holds no demo_0, demo_1, ...; expected LIBERO's layout")
        task = path.stem.removesuffix("_demo")
        suite = _suite(path, data)
        instruction = printable(_instruction(path, data, suite, task))
        suite = encodable(suite)
        turned = attribute(data, "tag") == COLLECTED_TAG
        turned &= attribute(data, ORIENTATION_ATTRIBUTE) != HAND_ORIENTATION
        references: list[DemonstrationReference] = []
        for name in sorted(names, key=lambda name: int(name.removeprefix("demo_"))):
            length, cameras, displaced, fault = 0, (), False, ""
            try:
                length, cameras = self._length_and_cameras(data, name, f"{path}: {name}")
                displaced = is_displaced(child_group(data, name, f"{path}: {name}"))
            except InputError as error:
                fault = str(error)
            references.append(
                DemonstrationReference(
                    path,
                    name,
                    f"{task}/{name}",
                    suite,
                    task,
                    instruction,
                    length,
                    cameras,
                    turned_states=turned,
                    displaced=displaced,
                    fault=fault,
                )
            )
        return references

    def _length_and_cameras(self, data: Node, name: str, where: str) -> tuple[int, tuple[str, ...]]:
        """Time steps and cameras of a demonstration (InputError: a part is missing, or no steps)."""
        demo = child_group(data, name, where)
        length = int(child_dataset(demo, "actions", where).shape[0])
        if not length:
            raise InputError(f"{where}: no time steps, expected at least one; delete this demonstration")
        views = child_group(demo, "obs", where)
        cameras = self._cameras_of(views)
        for stored in cameras.values():  # refused now and not after hours of encoding
            child_dataset(views, stored, where)
        return length, tuple(sorted(cameras))


def _unlisted(path: Path, error: InputError) -> DemonstrationReference:
    """A file whose demonstrations cannot be listed, as one with a fault."""
    task = path.stem.removesuffix("_demo")
    return DemonstrationReference(path, "", task, "", task, "", 0, (), fault=str(error))


def _actions_and_states(demo: Node, where: str) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Actions float64 [T, 7] and states float32 [T, 8] of a demonstration (InputError as `read_numbers`)."""
    actions = read_numbers(demo, "actions", ACTION_DIM, where, "delta pose 6 + gripper")
    views, steps = child_group(demo, "obs", where), len(actions)
    end_effector = read_numbers(views, "ee_states", 6, where, "position 3 + axis-angle 3", steps)
    gripper = read_numbers(views, "gripper_states", 2, where, "finger positions", steps)
    return actions, np.concatenate([end_effector, gripper], axis=1).astype(np.float32)


def hdf5_files(source: Path) -> list[Path]:
    """The HDF5 files of a folder by name, or the file itself.

    Raises:
        InputError: There is no such file or folder.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(
            f"{source}: no such file or folder; expected demonstrations, collect some with `worldvla collect`"
        )
    return sorted(
        p for p in source.iterdir() if p.suffix.lower() in HDF5_SUFFIXES and not p.name.startswith(".")
    )


def _suite(path: Path, data: Node) -> str:
    """The attribute `suite`, else the folder of the BDDL file (``.../libero_object/<task>.bddl``).

    Without attributes the folder of the file: the suite that its name begins with (``libero_goal_no_noops``).
    """
    bddl = attribute(data, "bddl_file_name") or ""
    stated = attribute(data, "suite") or PurePosixPath(bddl).parent.name
    folder = path.absolute().parent.name
    known = _SUITE_FOLDER.match(folder)
    return stated or (known.group() if known else folder)


def _instruction(path: Path, data: Node, suite: str, task: str) -> str:
    """LIBERO's words for its own tasks, else those of the attribute, else those of the file's name.

    The published filters of no-ops write files without attributes.
    """
    problem = PurePosixPath(attribute(data, "bddl_file_name") or "")
    if suite in LIBERO_SUITE_NAMES and problem.stem == task:
        return libero_language(task)
    text = attribute(data, "problem_info")
    if stated := _stated_instruction(text):
        return stated
    words = libero_language(task) if path.stem.endswith("_demo") else ""
    if len(re.findall(r"[^\W\d_]+", words)) < _MIN_WORDS:
        raise InputError(
            f"{path}: attribute problem_info of `data` is {str(text)[:60]!r}, expected LIBERO's JSON with a "
            "language_instruction; add it, or name the file after its task (pick_up_the_cube_demo.hdf5)"
        )
    return words


def _stated_instruction(text: str | None) -> str:
    """The instruction in `problem_info`; empty where there is none."""
    try:
        value: object = json.loads(text or "")
    except ValueError:
        value = None
    problem = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    instruction = problem.get("language_instruction")
    if isinstance(instruction, list):  # LIBERO's own files hold the words of some tasks as a list
        instruction = " ".join(str(word) for word in cast("list[object]", instruction))
    text = printable(instruction).strip().strip('"').lower() if isinstance(instruction, str) else ""
    return "" if is_blank(text) else text


def _upright(frames: NDArray[np.uint8], convention: str, where: str) -> NDArray[np.uint8]:
    """Rotate by 180 degrees, as LIBERO's policies do; `opencv` files are already flipped top to bottom."""
    if convention == "opengl":
        return frames[:, ::-1, ::-1]
    if convention == "opencv":
        return frames[:, :, ::-1]
    raise InputError(
        f"{where}: macros_image_convention is {convention[:40]!r}, expected opengl or opencv; "
        "correct the attribute"
    )
