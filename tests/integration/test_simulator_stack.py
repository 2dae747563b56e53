"""robosuite's Stack in the real simulator: its placements, when it is solved, and the expert."""

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
from data.sources.registry import read_demonstrations
from eval.config import CollectConfig, EvalCommandConfig
from eval.demonstrations.collect import collect
from eval.evaluation.evaluate import evaluate_command
from eval.expert.scripts import demonstrate
from eval.simulator.interface import Simulator
from eval.simulator.panda import seeded_numpy
from eval.simulator.registry import open_suite
from eval.simulator.stack import GREEN, RED
from tests.support.robomimic_playback import play_back

PLAIN, NARROW = "robosuite_stack", "robosuite_stack_narrow"
PIXELS = 64
RED_CUBE = 10  # place of its position [3] and orientation [4] in a physical state; the green cube's follow
STACKED = 0.0449  # m between the centres of a cube of 4 cm on one of 5 cm, in contact


@pytest.fixture(scope="module")
def narrow() -> Iterator[Simulator]:
    opened = open_suite(NARROW).open(0)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Simulator]:
    opened = open_suite(PLAIN).open(0)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def demonstrations(narrow: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("eval.demonstrations.collect.cached_simulator", lambda suite, task: narrow)
        collect(CollectConfig(suite=NARROW, episodes=1, out=str(folder), resolution=PIXELS, workers=1))
    return folder / "stack_the_red_cube_on_the_green_cube_demo.hdf5"


def placements(simulator: Any, numbers: range) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 2] of the red and the green cube before the settling steps."""
    red, green = [], []
    for number in numbers:
        simulator._place(number)
        simulator._environment.sim.forward()
        red.append(simulator.position(RED)[:2])
        green.append(simulator.position(GREEN)[:2])
    return np.array(red), np.array(green)


def test_initial_state_gives_the_same_episode_after_any_other(narrow: Simulator) -> None:
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 7))
    ends, views = [], []
    for number in (3, 4, 3):
        narrow.reset(number)
        for action in actions:
            narrow.step(action)
            narrow.state()  # reading changes nothing
        ends.append(narrow.sim_state())
        views.append(narrow.render("wrist", PIXELS))
        narrow.step(np.ones(7))
    np.testing.assert_array_equal(ends[0], ends[2])
    np.testing.assert_array_equal(views[0], views[2])
    assert not np.array_equal(ends[0], ends[1])


def test_narrow_placements_are_a_part_of_robosuites_own(narrow: Simulator, plain: Simulator) -> None:
    red, green = placements(narrow, range(40))
    assert np.abs(red[:, 0] + 0.055).max() <= 0.025, "in the strip nearest to the robot"
    assert np.abs(green[:, 0] - 0.055).max() <= 0.025, "in the farthest one"
    assert np.abs(np.concatenate([red, green])[:, 1]).max() <= 0.04
    assert min(np.ptp(red[:, 0]), np.ptp(green[:, 0])) > 0.04, "all of the strip is used"
    assert min(np.ptp(red[:, 1]), np.ptp(green[:, 1])) > 0.06
    red, green = placements(plain, range(40))
    assert np.abs(np.concatenate([red, green])).max() <= 0.08
    assert min(np.ptp(red, axis=0).min(), np.ptp(green, axis=0).min()) > 0.13
    assert ((red - green)[:, 0] > 0).any(), "in any order"


def test_plain_placements_are_those_of_robosuites_environment(plain: Simulator) -> None:
    import robosuite

    environment: Any = robosuite.make(
        "Stack", **plain.environment_arguments(), use_camera_obs=False, has_offscreen_renderer=False
    )
    try:
        with seeded_numpy(7):
            environment.reset()
        theirs = environment.sim.get_state().flatten()
    finally:
        environment.close()
    plain._place(7)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(plain.sim_state(), theirs)


def test_a_hard_reset_builds_the_narrow_task_anew_and_repeats() -> None:
    hard = open_suite(NARROW).open(0, reset="hard")
    try:
        red, green = placements(hard, range(5, 8))
        assert red[:, 0].max() <= -0.03
        assert green[:, 0].min() >= 0.03
        np.testing.assert_array_equal(placements(hard, range(5, 8)), (red, green))
    finally:
        hard.close()


def test_solved_is_the_red_cube_on_the_green_one_and_not_in_the_hand(narrow: Simulator) -> None:
    narrow.reset(0)
    start = narrow.sim_state()
    assert not narrow.success
    state = start.copy()
    state[RED_CUBE : RED_CUBE + 3] = narrow.position(GREEN) + np.array([0.0, 0.0, STACKED])
    state[RED_CUBE + 3 : RED_CUBE + 7] = state[RED_CUBE + 10 : RED_CUBE + 14]  # at the green cube's angle
    narrow.set_sim_state(state)
    assert narrow.success
    state[RED_CUBE + 2] += 0.03
    narrow.set_sim_state(state)
    assert not narrow.success, "in the air"
    narrow.set_sim_state(start)
    state = start.copy()
    state[RED_CUBE : RED_CUBE + 2] = narrow.position(GREEN)[:2] + np.array([0.0, STACKED])
    narrow.set_sim_state(state)
    assert not narrow.success, "beside it on the table"


def test_both_cameras_show_both_cubes_at_the_start(narrow: Simulator, plain: Simulator) -> None:
    for simulator in (narrow, plain):
        for number in range(4):
            simulator.reset(number)
            for camera in ("agent", "wrist"):
                view = simulator.render(camera, PIXELS).astype(int)
                red = (view[..., 0] > 90) & (view[..., 1] < 80)
                green = (view[..., 1] > 1.4 * view[..., 0]) & (view[..., 1] > 50)
                assert red.sum() >= 15, (simulator.task.suite, number, camera)
                assert green.sum() >= 20, (simulator.task.suite, number, camera)


@pytest.mark.parametrize("suite", [PLAIN, NARROW])
def test_expert_stacks_the_cubes_and_lets_go(suite: str, request: pytest.FixtureRequest) -> None:
    simulator = request.getfixturevalue("plain" if suite == PLAIN else "narrow")
    for number in range(10, 14):
        simulator.reset(number)
        solved_when_closed = False
        for action in demonstrate(simulator):
            simulator.step(action)
            solved_when_closed |= simulator.success and action[6] > 0
        assert simulator.success, number
        assert not solved_when_closed, "a cube in the hand is not stacked"
        red, green = simulator.position(RED), simulator.position(GREEN)
        assert np.abs(red - green - [0.0, 0.0, 0.045]).max() < 0.015, "it stands on the green one"


def test_demonstrations_are_read_back_and_played_back_by_robomimic(demonstrations: Path) -> None:
    import robosuite

    (read,) = read_demonstrations(SourceConfig(str(demonstrations.parent)))
    assert read.instruction == "stack the red cube on the green cube"
    assert 60 <= len(read.actions) <= 100
    file: Any = h5py.File(demonstrations)
    with file:
        metadata = json.loads(file["data"].attrs["env_args"])
        demo = file["data/demo_0"]
        assert demo.attrs["initial_state_number"] >= 1000
        model, states, actions = demo.attrs["model_file"], demo["states"][:], demo["actions"][:]
    of_robomimic = {"has_renderer": False, "has_offscreen_renderer": False, "ignore_done": True}
    of_robomimic |= {"use_object_obs": True, "use_camera_obs": False, "camera_depths": False}
    environment: Any = robosuite.make(metadata["env_name"], **metadata["env_kwargs"], **of_robomimic)
    try:
        environment.reset()
        play_back(environment, environment.edit_model_xml(model), states[0], actions)
        assert environment._check_success()
    finally:
        environment.close()


def test_rates_of_the_narrow_task_are_marked_in_the_results(tmp_path: Path) -> None:
    config = EvalCommandConfig(policy="expert", suite=NARROW, episodes=1, videos=0, out=str(tmp_path))
    results = evaluate_command(config)
    assert (results.successes, results.errors) == (1, 0)
    notes = json.loads((tmp_path / "results.json").read_text())["notes"]
    assert any("narrower placements" in note for note in notes)
    assert open_suite(PLAIN).notes == ()


def test_a_task_or_suite_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"robosuite_stack has tasks 0 to 0, not 1"):
        open_suite(PLAIN).open(1)
    with pytest.raises(
        InputError, match=r"suite=robosuite_stak: no such suite; did you mean robosuite_stack"
    ):
        open_suite("robosuite_stak")
