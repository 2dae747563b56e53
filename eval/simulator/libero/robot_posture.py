"""Robot initial states of LIBERO-Plus: arms with other initial joint angles."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import numpy as np

from data.errors import InputError

Joints = tuple[float, ...]
"""Joint angles [7] in radians."""

_MODELS = {"mounted_panda.py": "MountedPanda", "on_the_ground_panda.py": "OnTheGroundPanda"}


@functools.cache
def initial_joints(package: Path) -> dict[str, Joints]:
    """Initial joint angles of LIBERO-Plus' arms by class (`MountedPanda37`), read without importing it.

    Raises:
        InputError: A file of the package is missing or damaged.
    """
    angles = {}
    for file in _MODELS:
        path = package / "envs" / "robots" / file
        try:
            module = ast.parse(path.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); reinstall LIBERO-Plus") from error
        for node in module.body:
            if isinstance(node, ast.ClassDef) and node.name[-1].isdecimal():
                angles[node.name] = _returned_array(node, path)
    return angles


def _returned_array(model: ast.ClassDef, path: Path) -> Joints:
    """The numbers in the one `np.array([...])` of a class."""
    for node in ast.walk(model):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.List):
            return tuple(float(angle) for angle in ast.literal_eval(node.args[0]))
    raise InputError(f"{path}: class {model.name} has no initial joint angles; reinstall LIBERO-Plus")


def register_arm(number: int, package: Path) -> str:
    """Make LIBERO's environments know the arm of a number; returns its name for them (`Panda37`).

    Raises:
        InputError: There is no such arm.
    """
    from libero.libero.envs import robots  # pyright: ignore[reportMissingImports]
    from robosuite.robots import ROBOT_CLASS_MAPPING

    for base in _MODELS.values():
        name = f"{base}{number}"
        if name in ROBOT_CLASS_MAPPING:
            continue
        joints = initial_joints(package).get(name)
        if joints is None:
            raise InputError(f"LIBERO-Plus has no arm {name} in {package}; reinstall it")
        posture = property(lambda self, joints=joints: np.array(joints))
        type(name, (getattr(robots, base),), {"init_qpos": posture})  # robosuite registers it by its name
        ROBOT_CLASS_MAPPING[name] = ROBOT_CLASS_MAPPING[base]
    return f"Panda{number}"
