"""What a policy observes in robosuite's Lift: the present state, or what robosuite's own loop observes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eval.simulator import lift
from eval.simulator.libero.plus_camera import CameraView
from eval.simulator.panda import seeded_numpy
from eval.simulator.provenance import renderer
from eval.simulator.registry import open_suite
from tests.support.observing import ACTIONS, observed

PIXELS = 32


@pytest.fixture(scope="module")
def robosuite_loop() -> list[dict[str, NDArray[Any]]]:
    """Observations of an environment with cameras of its own, after each of the actions."""
    from robosuite.environments.manipulation.lift import Lift

    cameras = {
        "use_camera_obs": True,
        "camera_names": ["agentview", "robot0_eye_in_hand"],
        "camera_heights": PIXELS,
        "camera_widths": PIXELS,
    }
    plain = Lift.__init__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lift, "__init__", lambda self, **options: plain(self, **(options | cameras)))
        environment = lift._make_environment(CameraView())
    with seeded_numpy(3):
        environment.reset()
    for _ in range(10):
        first, *_ = environment.step(np.array([0.0, 0, 0, 0, 0, 0, -1]))
    observations = [first, *(environment.step(action)[0] for action in ACTIONS)]
    environment.close()
    return observations


def test_published_observations_are_those_of_robosuites_loop(
    robosuite_loop: list[dict[str, NDArray[Any]]],
) -> None:
    simulator = open_suite("robosuite_lift").open(0, "published")
    for _ in range(2):  # and the same after another episode
        for (agent, wrist, state), theirs in zip(observed(simulator, 3, PIXELS), robosuite_loop, strict=True):
            np.testing.assert_array_equal(agent, theirs["agentview_image"][::-1, ::-1])
            np.testing.assert_array_equal(wrist, theirs["robot0_eye_in_hand_image"][::-1, ::-1])
            np.testing.assert_array_equal(state[:3], theirs["robot0_eef_pos"])
            np.testing.assert_array_equal(state[6:], theirs["robot0_gripper_qpos"])
        simulator.reset(7)
        simulator.step(ACTIONS[0])
    simulator.close()


def test_recomputed_observations_are_newer_and_the_physics_is_the_same(
    robosuite_loop: list[dict[str, NDArray[Any]]],
) -> None:
    ends = []
    for observations in ("recomputed", "published"):
        simulator = open_suite("robosuite_lift").open(0, observations)
        states = [state for _, _, state in observed(simulator, 3, PIXELS)]
        if observations == "recomputed":
            older = [
                np.abs(s[:3] - o["robot0_eef_pos"]).max() for s, o in zip(states, robosuite_loop, strict=True)
            ]
            assert 1e-4 < max(older) < 3e-3  # metres: 2 ms of a moving hand
        ends.append(simulator.sim_state())
        simulator.close()
    np.testing.assert_array_equal(*ends)


def test_the_renderer_is_named_with_its_vendor() -> None:
    backend, _, vendor = renderer().partition(" ")
    assert backend in ("osmesa", "egl", "glfw")
    assert vendor.strip("()") not in ("", "unknown")


def test_positions_are_computed_once_in_a_substep_with_the_same_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mujoco

    functions: Any = mujoco
    simulator: Any = open_suite("robosuite_lift").open(0)
    environment = simulator._environment
    ends = []
    for step in (environment.step, simulator.step):
        simulator.reset(3)
        for action in ACTIONS:
            step(action)
        ends.append((simulator.sim_state(), environment.sim.data.qacc_warmstart.copy()))
    for of_robosuite, ours in zip(*ends, strict=True):
        np.testing.assert_array_equal(ours, of_robosuite)
    computed: list[int] = []
    forward = functions.mj_forward
    monkeypatch.setattr(functions, "mj_forward", lambda *state: (computed.append(1), forward(*state)))
    simulator.step(ACTIONS[0])
    assert len(computed) == 25, "substeps in a control step of 50 ms"
    assert "step" not in vars(environment.sim)
    simulator.close()
