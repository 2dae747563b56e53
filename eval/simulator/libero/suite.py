"""LIBERO's five suites, and what its robustness suites share with them."""

from __future__ import annotations

import abc
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from eval.config import Observations, Reset
from eval.simulator.interface import EVALUATION_STATES, TaskInfo
from eval.simulator.libero.assets import checksum, configure, find_assets, has_standins
from eval.simulator.libero.names import LIBERO_SUITES
from eval.simulator.libero.packages import package_folder
from eval.simulator.libero.simulator import LiberoSimulator, Variation, silent
from eval.simulator.panda import installed_versions
from eval.simulator.provenance import renderer
from eval.simulator.rendering import check_apart_from_cuda, choose_backend, quiet_robosuite

_SHOWN = 12  # digits of a checksum


class LiberoBase(abc.ABC):
    """A suite whose tasks LIBERO's environments run; subclasses list tasks and initial states.

    Raises:
        InputError: Renderer, package or assets are missing.
    """

    default_reset: Reset = "hard"  # as LIBERO's own scripts and published protocols
    notes: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    """Packages of the suite beside LIBERO, robosuite and MuJoCo."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._assets = find_assets()
        choose_backend()
        quiet_robosuite()
        configure(self._assets)
        self.tasks = self._tasks()

    @abc.abstractmethod
    def _tasks(self) -> tuple[TaskInfo, ...]:
        """All tasks of the suite, in its order."""

    @abc.abstractmethod
    def _initial_states(self, task: int) -> NDArray[np.float64]:
        """The fixed initial states float64 [N, D] of a task; see `Simulator.sim_state`."""

    def _variation(self, task: int) -> Variation | None:
        """What is changed beside the task's own file."""
        return None

    @property
    def standin_assets(self) -> bool:
        """Whether some visual assets are stand-ins."""
        return has_standins(self._assets)

    def versions(self) -> dict[str, str]:
        """Versions of LIBERO, robosuite, MuJoCo and the suite's own package, and which assets are used."""
        versions = installed_versions("hf-libero", "robosuite", "mujoco", *self.packages)
        return versions | {"assets": checksum(self._assets)[:_SHOWN]}

    def renderer(self) -> str:
        """Backend and vendor of the renderer."""
        return renderer()

    def open(
        self, task: int, observations: Observations = "recomputed", reset: Reset | None = None
    ) -> LiberoSimulator:
        """Build the simulator of a task (5 s, about 2 GB)."""
        check_apart_from_cuda()
        return LiberoSimulator(
            self.tasks[task],
            self._initial_states(task),
            observations,
            reset or self.default_reset,
            self._variation(task),
        )


class LiberoSuite(LiberoBase):
    """One of `LIBERO_SUITES`."""

    def _tasks(self) -> tuple[TaskInfo, ...]:
        from libero.libero import benchmark

        with silent():
            self._benchmark = benchmark.get_benchmark(self.name)()
        return tuple(self._task(number) for number in range(self._benchmark.get_num_tasks()))

    def _task(self, number: int) -> TaskInfo:
        task = self._benchmark.get_task(number)
        problem_file = self._benchmark.get_task_bddl_file_path(number)
        return TaskInfo(
            suite=self.name,
            number=number,
            name=task.name,
            instruction=task.language.lower(),
            horizon=LIBERO_SUITES[self.name],
            environment=environment_class(problem_file),
            problem_file=problem_file,
        )

    def versions(self) -> dict[str, str]:
        """Versions, and where the tasks are where LIBERO_CONFIG_PATH names others than the package's."""
        from libero.libero import get_libero_path

        folder = Path(get_libero_path("bddl_files"))
        own = folder.resolve() == (package_folder() / "bddl_files").resolve()
        return super().versions() | ({} if own else {"tasks": str(folder)})

    def _initial_states(self, task: int) -> NDArray[np.float64]:
        return np.asarray(self._benchmark.get_task_init_states(task), dtype=np.float64)[:EVALUATION_STATES]


def environment_class(path: str | Path) -> str:
    """Class of a BDDL file's environment: `Libero_Floor_Manipulation` for LIBERO_Floor_Manipulation in it.

    Raises:
        InputError: It cannot be read.
    """
    return _named_in(path, r"\(problem\s+(\w+)\)", "(problem NAME)").replace("LIBERO_", "Libero_", 1)


def instruction_in(path: str | Path) -> str:
    """The instruction in a BDDL file, in lower case.

    Raises:
        InputError: It cannot be read.
    """
    return " ".join(_named_in(path, r"\(:language\s+([^)]+)\)", "(:language TEXT)").lower().split())


def _named_in(path: str | Path, pattern: str, what: str) -> str:
    try:
        content = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot read this task ({error.strerror}); reinstall the package it is of"
        ) from error
    match = re.search(pattern, content)
    if match is None:
        raise InputError(f"{path}: no {what} in this task file; reinstall the package it is of")
    return match.group(1)
