"""Record the expert once: solve with physics only, check by replay, render the stored states afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.contracts import AGENT_CAMERA, WRIST_CAMERA
from data.sources.no_ops import moving_steps
from eval.demonstrations.displacement import displace
from eval.expert.scripts import demonstrate
from eval.simulator.interface import Simulator

CAMERAS = (AGENT_CAMERA, WRIST_CAMERA)
_STEPS_AFTER_SUCCESS = 10  # so that the gripper opens or the lift is clear


@dataclass(frozen=True, slots=True)
class Recording:
    """One successful demonstration, T steps long.

    Attributes:
        initial_state: Number of the initial state (`Simulator.reset`).
        displaced: Whether the gripper was moved before the first step.
        actions: float64 [T, 7].
        sim_states: float64 [T, D], physical state before each action (`Simulator.sim_state`).
        states: float64 [T, 8], proprioception before each action.
        joints: float64 [T, 7].
        frames: Camera -> uint8 [T, H, W, 3], upright, rendered before each action.
        model_xml: The simulator's model.
        environment_arguments: `Simulator.environment_arguments`.
    """

    initial_state: int
    displaced: bool
    actions: NDArray[np.float64]
    sim_states: NDArray[np.float64]
    states: NDArray[np.float64]
    joints: NDArray[np.float64]
    frames: dict[str, NDArray[np.uint8]]
    model_xml: str
    environment_arguments: dict[str, Any]


def record(simulator: Simulator, initial_state: int, pixels: int, displaced: float = 0.0) -> Recording | None:
    """Record the expert from one initial state.

    The demonstration counts only if it also succeeds when its actions without the no-ops (which training
    never sees) are replayed from its first stored state, as in published replays. One that begins displaced
    is not replayed: the steps in which a replay's simulator settles would move the hand.

    Args:
        simulator: The task.
        initial_state: Number of the initial state.
        pixels: Side of the frames.
        displaced: Probability that the gripper is moved elsewhere before (`displace`).

    Returns:
        The recording, or None if the expert or the replay fails.
    """
    simulator.reset(initial_state)
    was_displaced = displace(simulator, initial_state, displaced)
    solved = _solve(simulator)
    if solved is None:
        return None
    actions, sim_states = solved
    if not was_displaced and not replay(
        simulator, actions[moving_steps(actions)], sim_states[0], initial_state
    ):
        return None
    frames: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in CAMERAS}
    states, joints = [], []
    for sim_state in sim_states:
        simulator.set_sim_state(sim_state)
        states.append(simulator.state())
        joints.append(simulator.joints())
        for camera in CAMERAS:
            frames[camera].append(simulator.render(camera, pixels))
    return Recording(
        initial_state=initial_state,
        displaced=was_displaced,
        actions=actions,
        sim_states=sim_states,
        states=np.array(states),
        joints=np.array(joints),
        frames={camera: np.array(views) for camera, views in frames.items()},
        model_xml=simulator.model_xml(),
        environment_arguments=simulator.environment_arguments(),
    )


def _solve(simulator: Simulator) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Actions [T, 7] and the physical state before each [T, D]; None unless the task stays solved."""
    actions, sim_states = [], []
    solved_at: int | None = None
    for action in demonstrate(simulator):
        sim_states.append(simulator.sim_state())
        actions.append(action)
        simulator.step(action)
        if solved_at is None and simulator.success:
            solved_at = len(actions)
        if len(actions) >= simulator.task.horizon:
            break
        if solved_at is not None and len(actions) - solved_at >= _STEPS_AFTER_SUCCESS:
            break
    if solved_at is None or not simulator.success:
        return None
    return np.array(actions), np.array(sim_states)


def replay(
    simulator: Simulator, actions: NDArray[np.float64], first_state: NDArray[np.float64], initial_state: int
) -> bool:
    """Whether the actions [T, 7] solve the task from a stored physical state [D]."""
    simulator.replay_from(first_state, initial_state)
    for action in actions:
        simulator.step(action)
        if simulator.success:
            return True
    return False
