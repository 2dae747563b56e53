"""Which tasks of LIBERO's suites a folder of assets serves, without importing LIBERO or a simulator."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eval.simulator.libero.names import LIBERO_SUITES

# What BDDL files call the surfaces of scenes, which are no objects with files of their own.
_SURFACES = {"table", "floor", "kitchen_table", "living_room_table", "study_table", "coffee_table"}
_SECTIONS = re.compile(r"\(:(?:fixtures|objects)(.*?)\)", re.DOTALL)
_CATEGORY = re.compile(r"-\s*(\S+)")
_PROBLEM = re.compile(r"\(problem\s+(\w+)\)")
_SCENE = re.compile(r'"(scenes/\w+\.xml)"')
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# Not textures: models declare some that no part of them uses, environments replace those of the scenes.
_MESH = re.compile(r'\bfile="([^"]+\.(?:msh|stl|obj))"')


@dataclass(frozen=True, slots=True)
class Coverage:
    """Tasks of one suite that assets serve.

    Attributes:
        suite: Name of the suite.
        tasks: Number of its tasks.
        served: Number of those whose scene and objects are all there, with every mesh.
    """

    suite: str
    tasks: int
    served: int


def coverage(assets: Path, package: Path) -> list[Coverage]:
    """The tasks of each of LIBERO's suites that assets serve.

    Args:
        assets: Folder with LIBERO's scenes, objects and textures.
        package: Folder of LIBERO's inner package.
    """
    models = {path.stem: path for path in sorted(assets.rglob("*.xml"))}

    @functools.cache
    def is_whole(path: Path | None) -> bool:
        return path is not None and path.is_file() and all(each.is_file() for each in _meshes_of(path))

    def is_served(task: Path) -> bool:
        text = task.read_text(encoding="utf-8")
        names = set(_CATEGORY.findall(" ".join(_SECTIONS.findall(text)))) - _SURFACES
        scene = _scene(text, package)
        return is_whole(None if scene is None else assets / scene) and all(
            is_whole(models.get(name)) for name in names
        )

    result = []
    for suite in LIBERO_SUITES:
        tasks = sorted((package / "bddl_files" / suite).glob("*.bddl"))
        result.append(Coverage(suite, len(tasks), sum(map(is_served, tasks))))
    return result


def _meshes_of(model: Path) -> Iterator[Path]:
    """The meshes that a model names, relative to itself."""
    text = _COMMENT.sub("", model.read_text(encoding="utf-8"))
    return (model.parent / name for name in _MESH.findall(text))


def _scene(task: str, package: Path) -> str | None:
    """The scene of a task's environment, below the assets, as the environment's source names it."""
    problem = _PROBLEM.search(task)
    if problem is None:
        return None
    source = package / "envs" / "problems" / f"{problem.group(1).lower()}.py"
    found = _SCENE.search(source.read_text(encoding="utf-8")) if source.is_file() else None
    return None if found is None else found.group(1)
