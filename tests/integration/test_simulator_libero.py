"""One task of LIBERO Object in the real simulator: solved by the expert, recorded, replayed, evaluated.

Needs LIBERO's assets (`make libero`, or `LIBERO_ASSETS`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data.config import SourceConfig
from data.errors import InputError
from data.sources.libero.language import libero_language
from data.sources.no_ops import moving_steps
from data.sources.registry import read_demonstrations
from data.tokens.action import ActionRanges, decode, encode
from eval.config import CollectConfig, EvalCommandConfig
from eval.demonstrations.collect import collect
from eval.demonstrations.recording import replay
from eval.evaluation.evaluate import evaluate_command
from eval.simulator.interface import Simulator
from eval.simulator.libero.assets import find_assets
from eval.simulator.libero.names import LIBERO_SUITES
from eval.simulator.libero.packages import package_folder
from eval.simulator.registry import open_suite
from tests.support.observing import ACTIONS, observed
from tests.support.robomimic_playback import play_back

SUITE, TASK = "libero_object", 1
RESOLUTION = 32


def h5(path: Path) -> Any:
    """h5py's stubs know too little of what a file holds."""
    return h5py.File(path)


@pytest.fixture(scope="module", autouse=True)
def _assets() -> None:
    try:
        find_assets()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def demonstrations(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    config = CollectConfig(
        suite=SUITE, tasks=[TASK], episodes=1, out=str(folder), resolution=RESOLUTION, workers=1
    )
    collect(config)
    return folder


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """One simulator for all tests of this process."""
    opened = open_suite(SUITE).open(TASK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.demonstrations.collect.cached_simulator", lambda suite, task: opened)
        yield opened
    opened.close()


def test_suite_has_its_ten_tasks_and_fifty_states() -> None:
    suite = open_suite(SUITE)
    assert len(suite.tasks) == 10
    task = suite.tasks[TASK]
    assert task.instruction == "pick up the cream cheese and place it in the basket"
    assert task.environment == "Libero_Floor_Manipulation"
    assert task.horizon == 280


def test_results_name_tasks_that_are_not_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = open_suite(SUITE)
    assert "tasks" not in suite.versions()
    import libero.libero

    monkeypatch.setattr(libero.libero, "get_libero_path", lambda key: str(tmp_path))
    assert suite.versions()["tasks"] == str(tmp_path)


def test_initial_state_gives_the_same_episode_after_any_other(simulator: Simulator) -> None:
    action = np.array([0.2, 0.1, -0.3, 0.0, 0.0, 0.1, 1.0])
    ends = []
    for number in (3, 1004, 3, 1004):
        simulator.reset(number)
        for _ in range(5):
            simulator.step(action)
        ends.append(simulator.sim_state())
    np.testing.assert_array_equal(ends[0], ends[2])
    np.testing.assert_array_equal(ends[1], ends[3])
    assert np.abs(ends[0] - ends[1]).max() > 1e-3


def test_recorded_demonstration_is_read_back_and_replays(simulator: Simulator, demonstrations: Path) -> None:
    demonstration = next(read_demonstrations(SourceConfig(str(demonstrations))))
    assert demonstration.suite == SUITE
    steps = len(demonstration.actions)
    assert 80 < steps < 280
    assert demonstration.frames["agent"].shape == (steps, RESOLUTION, RESOLUTION, 3)
    assert demonstration.frames["wrist"].std() > 10
    with h5(next(demonstrations.glob("*.hdf5"))) as file:
        data = file["data"]
        assert data.attrs["bddl_file_name"].endswith("libero_object/" + demonstration.task + ".bddl")
        first, number = data["demo_0/states"][0], int(data["demo_0"].attrs["initial_state_number"])
        actions = data["demo_0/actions"][:]
    assert number >= 1000
    moving = actions[moving_steps(actions)]
    assert replay(simulator, moving, first, number)
    ranges = ActionRanges(tuple(moving.min(axis=0)), tuple(moving.max(axis=0)))
    assert replay(simulator, decode(encode(moving, ranges), ranges), first, number)


def test_robomimic_plays_demonstrations_back_from_their_metadata(demonstrations: Path) -> None:
    """As robomimic's `create_env_from_metadata` does; the model's paths are those of this machine already."""
    import robosuite
    from libero.libero.envs import TASK_MAPPING

    of_robomimic = {"has_renderer": False, "has_offscreen_renderer": False, "ignore_done": True}
    of_robomimic |= {"use_object_obs": True, "use_camera_obs": False, "camera_depths": False}
    with h5(next(demonstrations.glob("*.hdf5"))) as file:
        metadata = json.loads(file["data"].attrs["env_args"])
        problem = json.loads(file["data"].attrs["problem_info"])
        demo = file["data/demo_0"]
        model, states, actions = demo.attrs["model_file"], demo["states"][:], demo["actions"][:]
    assert problem["problem_name"] in TASK_MAPPING
    arguments = metadata["env_kwargs"]
    arguments["bddl_file_name"] = str(package_folder() / arguments["bddl_file_name"])
    environment: Any = robosuite.make(metadata["env_name"], **arguments, **of_robomimic)
    try:
        environment.reset()
        play_back(environment, model, states[0], actions)
        assert environment._check_success()
    finally:
        environment.close()


def test_expert_solves_the_task_in_an_evaluation(tmp_path: Path) -> None:
    config = EvalCommandConfig(
        policy="expert", suite=SUITE, tasks=[TASK], episodes=1, videos=0, out=str(tmp_path)
    )
    results = evaluate_command(config)
    assert (results.successes, results.errors) == (1, 0)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["versions"]["hf-libero"] == "0.1.4"
    assert isinstance(content["standin_assets"], bool)


@pytest.mark.parametrize("name", LIBERO_SUITES)
def test_training_and_evaluation_have_the_same_instructions(name: str) -> None:
    suite = open_suite(name)
    assert len(suite.tasks) == (90 if name == "libero_90" else 10)
    for task in suite.tasks:
        assert libero_language(task.name) == task.instruction
        assert task.horizon == LIBERO_SUITES[name]


def test_hard_resets_and_published_observations_are_those_of_liberos_scripts() -> None:
    """To the last bit, physics and frames, whatever came before in the same simulator."""
    suite: Any = open_suite(SUITE)  # before LIBERO is imported
    task, initial_state = TASK, 3
    from libero.libero.envs.env_wrapper import OffScreenRenderEnv

    script = OffScreenRenderEnv(
        bddl_file_name=suite.tasks[task].problem_file, camera_heights=RESOLUTION, camera_widths=RESOLUTION
    )
    script.seed(0)
    script.reset()
    script.set_init_state(suite._initial_states(task)[initial_state])
    for _ in range(10):
        first, *_ = script.step([0.0, 0, 0, 0, 0, 0, -1])
    theirs = [first, *(script.step(action)[0] for action in ACTIONS)]
    end = script.sim.get_state().flatten()
    script.close()
    simulator = suite.open(task, "published")
    for before in (7, 1001):
        simulator.reset(before)
        simulator.step(ACTIONS[0])
    for (agent, wrist, state), expected in zip(
        observed(simulator, initial_state, RESOLUTION), theirs, strict=True
    ):
        np.testing.assert_array_equal(agent, expected["agentview_image"][::-1, ::-1])
        np.testing.assert_array_equal(wrist, expected["robot0_eye_in_hand_image"][::-1, ::-1])
        np.testing.assert_allclose(state[:3], expected["robot0_eef_pos"], atol=1e-9)
        np.testing.assert_allclose(state[6:], expected["robot0_gripper_qpos"], atol=1e-9)
    np.testing.assert_array_equal(simulator.sim_state(), end)
    simulator.close()


def test_frames_are_as_bright_as_the_pinned_mujoco_draws_them(simulator: Simulator) -> None:
    """MuJoCo 3.4 and later draw darker; stand-ins of assets have other colours."""
    simulator.reset(0)
    assert simulator.render("agent", 256).mean() == pytest.approx(139.7, abs=0.5)
    assert simulator.render("wrist", 256).mean() == pytest.approx(137.8, abs=0.5)


@pytest.mark.parametrize(
    ("name", "task"),
    [("libero_pro_goal_object", 3), ("libero_plus_robot", 7), ("libero_plus_noise", 1000)],
)
def test_tasks_of_the_robustness_suites_run_and_start_alike(name: str, task: int) -> None:
    suite = open_suite(name)
    assert suite.tasks[task].category == name.split("_")[-1]
    simulator = suite.open(task)
    starts = []
    for initial_state in (0, 1001, 0):  # 1001 places the fixtures elsewhere
        simulator.reset(initial_state)
        starts.append((simulator.sim_state(), simulator.render("agent", 64)))
        for action in ACTIONS:
            simulator.step(action)
    simulator.close()
    for first, elsewhere, again in zip(*starts, strict=True):
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, elsewhere)
