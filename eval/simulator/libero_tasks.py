"""LIBERO's suites: fixed initial states 0 to 49 for evaluation, sampled ones from 50 on for collection."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import InputError
from eval.config import Observations
from eval.simulator.interface import (
    EVALUATION_STATES,
    Goal,
    SimulatorError,
    TaskInfo,
    problem_file_in_package,
)
from eval.simulator.libero_assets import configure, find_assets, has_standins
from eval.simulator.libero_names import LIBERO_SUITES
from eval.simulator.panda import PandaSimulator, installed_versions, seeded_numpy
from eval.simulator.provenance import RESET, renderer
from eval.simulator.rendering import choose_backend, quiet_robosuite

_MAX_PLACEMENTS = 20


class LiberoSuite:
    """One of LIBERO's suites; see `LIBERO_SUITES`.

    Raises:
        InputError: Renderer, package or assets are missing.
    """

    reset = RESET

    def __init__(self, name: str) -> None:
        self.name = name
        self._assets = find_assets()
        choose_backend()
        quiet_robosuite()
        configure(self._assets)
        from libero.libero import benchmark

        with _silent():
            self._benchmark = benchmark.get_benchmark(name)()
        self.tasks = tuple(self._task(number) for number in range(self._benchmark.get_num_tasks()))

    @property
    def standin_assets(self) -> bool:
        """Whether some visual assets are stand-ins."""
        return has_standins(self._assets)

    def versions(self) -> dict[str, str]:
        """Versions of LIBERO, robosuite and MuJoCo."""
        return installed_versions("hf-libero", "robosuite", "mujoco")

    def renderer(self) -> str:
        """Backend and vendor of the renderer."""
        return renderer()

    def open(self, task: int, observations: Observations = "recomputed") -> LiberoSimulator:
        """Build the simulator of a task (5 s, about 2 GB)."""
        return LiberoSimulator(self.tasks[task], self._initial_states(task), observations)

    def _task(self, number: int) -> TaskInfo:
        task = self._benchmark.get_task(number)
        problem_file = self._benchmark.get_task_bddl_file_path(number)
        return TaskInfo(
            suite=self.name,
            number=number,
            name=task.name,
            instruction=task.language.lower(),
            horizon=LIBERO_SUITES[self.name],
            environment=_environment_class(problem_file),
            problem_file=problem_file,
        )

    def _initial_states(self, task: int) -> NDArray[np.float64]:
        """The package's fixed initial states float64 [50, D]; see `Simulator.sim_state`."""
        return np.asarray(self._benchmark.get_task_init_states(task), dtype=np.float64)


class LiberoSimulator(PandaSimulator):
    """One LIBERO task.

    Args:
        task: The task.
        initial_states: Physical states float64 [N, D] of initial states 0 to N - 1.
        observations: What frames and proprioception show; see `eval.config.EvaluationSettings`.
    """

    def __init__(
        self,
        task: TaskInfo,
        initial_states: NDArray[np.float64],
        observations: Observations = "recomputed",
    ) -> None:
        super().__init__(_make_environment(task), task, observations)
        self._initial_states = initial_states

    def _place(self, initial_state: int) -> None:
        fixed = initial_state < EVALUATION_STATES
        if fixed and initial_state >= len(self._initial_states):
            raise InputError(
                f"initial state {initial_state}: {self.task.name} has {len(self._initial_states)} fixed ones"
            )
        # A reset also places fixtures, which are not part of the physical state: one seed for all fixed
        # states gives them the same place in every episode.
        with seeded_numpy(0 if fixed else initial_state):
            self._sample_placement()
        if fixed:
            self.set_sim_state(self._initial_states[initial_state])

    def _sample_placement(self) -> None:
        from robosuite.utils.errors import RandomizationError

        for attempt in range(_MAX_PLACEMENTS):
            try:
                self._environment.reset()
                return
            except RandomizationError as error:
                if attempt + 1 == _MAX_PLACEMENTS:
                    raise SimulatorError(
                        f"no free places for the objects in {attempt + 1} attempts"
                    ) from error

    def set_sim_state(self, flat_state: NDArray[np.float64]) -> None:
        """Set the physical state float64 [D]; LIBERO's own object states (a stove's knob) are updated."""
        super().set_sim_state(flat_state)
        self._environment._check_success()
        self._environment._post_process()

    def environment_arguments(self) -> dict[str, Any]:
        """Arguments of robosuite's environments, and those of LIBERO's own."""
        problem_file = problem_file_in_package(self.task)
        return super().environment_arguments() | {
            "bddl_file_name": problem_file,
            "initialization_noise": None,
        }

    def _bodies(self) -> Mapping[str, int]:
        return self._environment.obj_body_id

    def objects(self) -> tuple[str, ...]:
        """Names of the movable objects, as in the task's BDDL file."""
        return tuple(self._environment.objects_dict)

    def goals(self) -> tuple[Goal, ...]:
        """The goal of the task's BDDL file."""
        return tuple(
            Goal(condition[0].lower(), condition[1], condition[2] if len(condition) > 2 else "")
            for condition in self._environment.parsed_problem["goal_state"]
        )


def _make_environment(task: TaskInfo) -> Any:
    """LIBERO's environment of the task, with soft resets and no observations of its own."""
    from libero.libero.envs.env_wrapper import ControlEnv

    try:
        with seeded_numpy(0), _silent():
            wrapper = ControlEnv(
                bddl_file_name=task.problem_file,
                use_camera_obs=False,
                has_offscreen_renderer=True,
                ignore_done=True,
            )
    except (FileNotFoundError, ValueError) as error:
        # MuJoCo reports a missing mesh or texture as ValueError("... Error opening file ...").
        if isinstance(error, ValueError) and "opening file" not in str(error):
            raise
        raise InputError(
            f"task {task.number} of {task.suite}: an asset is missing ({' '.join(str(error).split())}); "
            "complete the folder that LIBERO_ASSETS names"
        ) from error
    environment = wrapper.env
    with seeded_numpy(0):
        environment.reset()
    environment.hard_reset = False
    return environment


def _environment_class(path: str) -> str:
    """Class of a BDDL file's environment: `Libero_Floor_Manipulation` for LIBERO_Floor_Manipulation in it."""
    try:
        content = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot read this task ({error.strerror}); reinstall hf-libero") from error
    match = re.search(r"\(problem\s+(\w+)\)", content)
    if match is None:
        raise InputError(f"{path}: no (problem NAME) in this task file; reinstall hf-libero")
    return match.group(1).replace("LIBERO_", "Libero_", 1)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress LIBERO's informational prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
