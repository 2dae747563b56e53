"""robosuite's Lift for real: the expert, its demonstrations, and its evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest

from data.config import SourceConfig
from data.prepare.frames import moving_steps
from data.sources.registry import open_source, read_demonstrations
from data.tokens.action import decode, encode
from eval.config import CollectConfig, EvalCommandConfig
from eval.demonstrations.collect import collect
from eval.demonstrations.recording import replay
from eval.demonstrations.replay import replay_demonstration
from eval.evaluation.evaluate import evaluate_command
from eval.expert.scripts import demonstrate
from eval.simulator.interface import Simulator
from eval.simulator.registry import open_suite

PIXELS = 64


def h5(path: Path) -> Any:
    """h5py's stubs know too little of what a file holds."""
    return h5py.File(path)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    opened = open_suite("robosuite_lift").open(0)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    collect(CollectConfig(episodes=2, out=str(folder), resolution=PIXELS, workers=1))
    return folder


def test_an_initial_state_is_the_same_episode_whatever_ran_before(simulator: Simulator) -> None:
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 7))
    ends = []
    for number in (3, 4, 3):
        simulator.reset(number)
        for action in actions:
            simulator.step(action)
            simulator.state()  # looking changes nothing
        ends.append(simulator.sim_state())
        simulator.step(np.ones(7))
    np.testing.assert_array_equal(ends[0], ends[2])
    assert not np.array_equal(ends[0], ends[1])


def test_drawing_does_not_change_the_physics_and_shows_gripper_and_cube(simulator: Simulator) -> None:
    actions = np.tile([0.0, 0.0, -0.4, 0.0, 0.0, 0.0, -1.0], (6, 1))
    ends = []
    view = np.zeros((PIXELS, PIXELS, 3), np.uint8)
    for draw in (False, True):
        simulator.reset(0)
        for action in actions:
            simulator.step(action)
            if draw:
                view = simulator.render("agent", PIXELS)
        ends.append(simulator.sim_state())
    np.testing.assert_array_equal(ends[0], ends[1])
    red = (view[..., 0] > 90) & (view[..., 1] < 70)
    rows = np.flatnonzero(red.any(axis=1))
    assert 30 < red.sum() < 200
    assert rows.min() > PIXELS // 2  # the cube is below the middle: the picture is upright
    assert view[: PIXELS // 3].std() > 30  # the robot is above it


def test_each_of_two_simulators_in_a_process_draws_its_own_view(simulator: Simulator) -> None:
    simulator.reset(3)
    alone = simulator.render("agent", PIXELS)
    other = open_suite("robosuite_lift").open(0)
    other.reset(4)
    view = other.render("agent", PIXELS)
    np.testing.assert_array_equal(simulator.render("agent", PIXELS), alone)
    np.testing.assert_array_equal(other.render("agent", PIXELS), view)
    assert not np.array_equal(view, alone)
    other.close()
    np.testing.assert_array_equal(simulator.render("agent", PIXELS), alone)


def test_demonstrations_are_read_back_and_replay_through_the_action_tokens(
    simulator: Simulator, demonstrations: Path
) -> None:
    read = list(read_demonstrations(SourceConfig(str(demonstrations))))
    assert [demonstration.instruction for demonstration in read] == ["lift the red cube"] * 2
    with h5(demonstrations / "lift_the_red_cube_demo.hdf5") as file:
        for number, demonstration in enumerate(read):
            stored = file[f"data/demo_{number}"]
            assert demonstration.frames["agent"].shape == (len(demonstration.actions), PIXELS, PIXELS, 3)
            assert 35 <= len(demonstration.actions) <= 70
            assert stored.attrs["initial_state_number"] >= 1000
            assert "<mujoco" in stored.attrs["model_file"]
            kept = demonstration.actions[moving_steps(demonstration.actions)]
            seen_by_a_policy = decode(encode(kept))
            first, number = stored["states"][0], int(stored.attrs["initial_state_number"])
            assert replay(simulator, seen_by_a_policy, first, number)
            assert not replay(simulator, -seen_by_a_policy, first, number)


def test_a_demonstration_acted_out_again_is_the_recorded_one(
    demonstrations: Path, monkeypatch: pytest.MonkeyPatch, simulator: Simulator
) -> None:
    monkeypatch.setattr("eval.demonstrations.replay.cached_simulator", lambda suite, task: simulator)
    source = open_source(SourceConfig(str(demonstrations)))
    reference = source.references()[0]
    recorded, again = source.read(reference), replay_demonstration(reference, PIXELS)
    assert again is not None
    kept = moving_steps(recorded.actions)
    assert np.array_equal(again.actions, recorded.actions[kept])
    assert np.abs(again.states[:, :3] - recorded.states[kept, :3]).max() < 0.02, "metres"
    difference = again.frames["agent"].astype(int) - recorded.frames["agent"][kept]
    assert np.abs(difference).mean() < 5, "the ten settling steps come first, so not to the bit"


def test_the_same_settings_collect_the_same_demonstrations_with_two_workers(
    demonstrations: Path, tmp_path: Path
) -> None:
    collect(CollectConfig(episodes=2, out=str(tmp_path), resolution=PIXELS, workers=2))
    name = "lift_the_red_cube_demo.hdf5"
    with h5(demonstrations / name) as one, h5(tmp_path / name) as two:
        for demo in ("demo_0", "demo_1"):
            for part in ("actions", "states", "obs/agentview_rgb", "obs/eye_in_hand_rgb"):
                np.testing.assert_array_equal(one[f"data/{demo}/{part}"][:], two[f"data/{demo}/{part}"][:])


def test_expert_lifts_the_cube_in_every_evaluation(tmp_path: Path) -> None:
    config = EvalCommandConfig(policy="expert", suite="robosuite_lift", episodes=2, out=str(tmp_path))
    results = evaluate_command(config)
    assert (results.successes, results.errors) == (2, 0)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["versions"]["robosuite"] == "1.4.0"
    with av.open(str(tmp_path / content["per_episode"][0]["video"])) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == (content["per_episode"][0]["steps"] + 1) // 2 + 1


def test_expert_solves_other_initial_states(simulator: Simulator) -> None:
    solved = 0
    for number in range(10, 16):
        simulator.reset(number)
        for action in demonstrate(simulator):
            simulator.step(action)
        solved += simulator.success
    assert solved == 6
