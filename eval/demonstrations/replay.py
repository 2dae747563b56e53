"""Replay of demonstrations in their simulator, as published training data were made.

From the first stored physical state, after the settling steps, the recorded actions without the no-ops are
applied again; frames and proprioception are recorded before each of them, and demonstrations that do not end
in success are left out (OpenVLA's treatment of LIBERO, which WorldVLA follows).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.contracts import Demonstration
from data.errors import InputError
from data.sources.interface import DemonstrationReference
from data.sources.libero.motion import read_motion
from data.sources.no_ops import moving_steps
from eval.demonstrations.worker_pool import cached_simulator
from eval.simulator.interface import SimulatorError
from eval.simulator.registry import open_suite


def replay_demonstration(reference: DemonstrationReference, pixels: int) -> Demonstration | None:
    """Replay a demonstration; its frames are upright, uint8 [T, pixels, pixels, 3], one per moving action.

    Returns:
        The replayed demonstration, or None if the task is not solved at the end or the physics fails.

    Raises:
        InputError: Unknown suite or task, or the file lacks the physical state.
    """
    motion = read_motion(reference)
    actions = motion.actions[moving_steps(motion.actions)]
    simulator = cached_simulator(reference.suite, _task_number(reference))
    frames: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in reference.cameras}
    states: list[NDArray[np.float64]] = []
    try:
        simulator.replay_from(motion.first_physics, motion.initial_state)
        for action in actions:
            states.append(simulator.state())
            for camera, views in frames.items():
                views.append(simulator.render(camera, pixels))
            simulator.step(action)
    except SimulatorError:
        return None
    if not len(actions) or not simulator.success:
        return None
    return Demonstration(
        key=reference.key,
        suite=reference.suite,
        task=reference.task,
        instruction=reference.instruction,
        frames={camera: np.stack(views) for camera, views in frames.items()},
        actions=actions,
        states=np.stack(states).astype(np.float32),
    )


def _task_number(reference: DemonstrationReference) -> int:
    """Number of the task within its suite."""
    tasks = open_suite(reference.suite).tasks
    for task in tasks:
        if task.name == reference.task:
            return task.number
    raise InputError(
        f"{reference.path}: suite {reference.suite} has no task {reference.task}; name the file after one of "
        f"its {len(tasks)} tasks ({tasks[0].name}_demo.hdf5, ...) to replay it"
    )
