"""robosuite's Lift in the real simulator: the expert, its demonstrations, and its evaluation."""

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
from data.sources.no_ops import moving_steps
from data.sources.registry import open_source, read_demonstrations
from data.tokens.action import decode, encode
from eval.config import CollectConfig, EvalCommandConfig
from eval.demonstrations.collect import collect
from eval.demonstrations.recording import replay
from eval.demonstrations.replay import replay_demonstration
from eval.evaluation.evaluate import evaluate_command
from eval.expert.scripts import demonstrate
from eval.policy.expert_policy import ExpertPolicy
from eval.recording.lerobot_writer import write_data_set
from eval.recording.recorded_episode import RecordedEpisode, episode_folder
from eval.recording.recorder import EpisodeRecorder, RecordingPlace
from eval.rollout.episode import run_episode
from eval.simulator.interface import Simulator
from eval.simulator.registry import open_suite
from tests.support.robomimic_playback import play_back

SUITE = "robosuite_lift"
PIXELS = 64  # of views that are looked at
RESOLUTION = 32  # of recorded demonstrations


def h5(path: Path) -> Any:
    """h5py's stubs know too little of what a file holds."""
    return h5py.File(path)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """One simulator for all tests of this process."""
    opened = open_suite(SUITE).open(0)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("collect", "replay"):
            patch.setattr(f"eval.demonstrations.{module}.cached_simulator", lambda suite, task: opened)
        yield opened
    opened.close()


@pytest.fixture(scope="module")
def demonstrations(simulator: Simulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    collect(CollectConfig(suite=SUITE, episodes=2, out=str(folder), resolution=RESOLUTION, workers=1))
    return folder


def quaternion(simulator: Any) -> np.ndarray:
    """robosuite's own observation of the hand (x, y, z, w)."""
    return simulator._environment._get_observations(force_update=True)["robot0_eef_quat"]


def axis_angle(quaternion: np.ndarray) -> np.ndarray:
    """Axis times angle, which exceeds pi where w is negative."""
    vector, w = quaternion[:3], quaternion[3]
    length = np.linalg.norm(vector)
    return vector / length * 2 * np.arctan2(length, w)


def test_state_is_that_of_the_hand_body_and_continuous(simulator: Any) -> None:
    simulator.reset(3)
    states = []
    for step in range(60):
        state = simulator.state()
        observed = simulator._environment._get_observations(force_update=True)
        np.testing.assert_allclose(state[:3], observed["robot0_eef_pos"])
        np.testing.assert_allclose(state[3:6], axis_angle(observed["robot0_eef_quat"]), atol=1e-9)
        np.testing.assert_allclose(state[6:], observed["robot0_gripper_qpos"])
        states.append(state)
        simulator.step(np.array([0, 0, 0, -0.3 if step < 20 else 0.3, 0, 0, -1]))
    turns = np.array(states)[:, 3:6]
    np.testing.assert_allclose(np.abs(turns[0]), [np.pi, 0, 0], atol=0.3)  # the fingers point down
    angles = np.linalg.norm(turns, axis=1)
    assert angles.min() < np.pi < angles.max(), "it passes the angle where the axis of a matrix would flip"
    assert np.abs(np.diff(turns, axis=0)).max() < 0.3


def test_recorded_states_are_those_of_the_hand(simulator: Any, demonstrations: Path) -> None:
    with h5(demonstrations / "lift_the_red_cube_demo.hdf5") as file:
        assert file["data"].attrs["state_orientation"] == "hand_body"
        demo = file["data/demo_0"]
        robot, turns, physics = demo["robot_states"][:], demo["obs/ee_ori"][:], demo["states"][:]
    for step in (0, len(physics) // 2, len(physics) - 1):
        simulator.set_sim_state(physics[step])
        observed = quaternion(simulator)
        np.testing.assert_allclose(robot[step, 5:], observed, atol=1e-9)
        np.testing.assert_allclose(turns[step], axis_angle(observed), atol=1e-9)
    assert np.abs(np.diff(robot[:, 5:], axis=0)).max() < 0.1, "the sign never flips"


def test_initial_state_gives_the_same_episode_after_any_other(simulator: Simulator) -> None:
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 7))
    ends = []
    for number in (3, 4, 3):
        simulator.reset(number)
        for action in actions:
            simulator.step(action)
            simulator.state()  # reading changes nothing
        ends.append(simulator.sim_state())
        simulator.step(np.ones(7))
    np.testing.assert_array_equal(ends[0], ends[2])
    assert not np.array_equal(ends[0], ends[1])


def test_rendering_does_not_change_the_physics_and_shows_gripper_and_cube(simulator: Simulator) -> None:
    actions = np.tile([0.0, 0.0, -0.4, 0.0, 0.0, 0.0, -1.0], (6, 1))
    ends = []
    view = np.zeros((PIXELS, PIXELS, 3), np.uint8)
    for render in (False, True):
        simulator.reset(0)
        for action in actions:
            simulator.step(action)
            if render:
                view = simulator.render("agent", PIXELS)
        ends.append(simulator.sim_state())
    np.testing.assert_array_equal(ends[0], ends[1])
    red = (view[..., 0] > 90) & (view[..., 1] < 70)
    rows = np.flatnonzero(red.any(axis=1))
    assert 30 < red.sum() < 200
    assert rows.min() > PIXELS // 2  # the cube is below the middle: the picture is upright
    assert view[: PIXELS // 3].std() > 30  # the robot is above it


def test_two_simulators_in_a_process_render_their_own_views(simulator: Simulator) -> None:
    simulator.reset(3)
    alone = simulator.render("agent", PIXELS)
    other = open_suite(SUITE).open(0)
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
            assert demonstration.frames["agent"].shape == (
                len(demonstration.actions),
                RESOLUTION,
                RESOLUTION,
                3,
            )
            assert 35 <= len(demonstration.actions) <= 70
            assert stored.attrs["initial_state_number"] >= 1000
            assert "<mujoco" in stored.attrs["model_file"]
            moving = demonstration.actions[moving_steps(demonstration.actions)]
            decoded = decode(encode(moving))
            first, number = stored["states"][0], int(stored.attrs["initial_state_number"])
            assert replay(simulator, decoded, first, number)
            assert not replay(simulator, -decoded, first, number)


def test_robomimic_plays_demonstrations_back_from_their_metadata(demonstrations: Path) -> None:
    """What robomimic's `create_env_from_metadata` and `reset_to` do with robosuite, as it does it."""
    import robosuite

    of_robomimic = {"has_renderer": False, "has_offscreen_renderer": False, "ignore_done": True}
    of_robomimic |= {"use_object_obs": True, "use_camera_obs": False, "camera_depths": False}
    with h5(demonstrations / "lift_the_red_cube_demo.hdf5") as file:
        metadata = json.loads(file["data"].attrs["env_args"])
        demo = file["data/demo_0"]
        model, states, actions = demo.attrs["model_file"], demo["states"][:], demo["actions"][:]
    environment: Any = robosuite.make(metadata["env_name"], **metadata["env_kwargs"], **of_robomimic)
    try:
        environment.reset()
        play_back(environment, environment.edit_model_xml(model), states[0], actions)
        assert environment._check_success()
        assert np.abs(environment.sim.get_state().flatten()[1:8] - states[-1][1:8]).max() < 0.1, "radians"
    finally:
        environment.close()


def test_replayed_demonstration_equals_the_recorded_one(demonstrations: Path) -> None:
    source = open_source(SourceConfig(str(demonstrations)))
    reference = source.references()[0]
    recorded, again = source.read(reference), replay_demonstration(reference, RESOLUTION)
    assert again is not None
    moving = moving_steps(recorded.actions)
    assert np.array_equal(again.actions, recorded.actions[moving])
    assert np.abs(again.states[:, :3] - recorded.states[moving, :3]).max() < 0.02, "metres"
    assert np.abs(again.states[:, 3:6] - recorded.states[moving, 3:6]).max() < 0.1, "radians"
    difference = again.frames["agent"].astype(int) - recorded.frames["agent"][moving]
    assert np.abs(difference).mean() < 5, "settling steps run before, so not bitwise equal"


def test_two_workers_collect_the_same_demonstrations(demonstrations: Path, tmp_path: Path) -> None:
    collect(CollectConfig(suite=SUITE, episodes=2, out=str(tmp_path), resolution=RESOLUTION, workers=2))
    name = "lift_the_red_cube_demo.hdf5"
    with h5(demonstrations / name) as one, h5(tmp_path / name) as two:
        for demo in ("demo_0", "demo_1"):
            for part in ("actions", "states", "obs/agentview_rgb", "obs/eye_in_hand_rgb"):
                np.testing.assert_array_equal(one[f"data/{demo}/{part}"][:], two[f"data/{demo}/{part}"][:])


def test_expert_lifts_the_cube_in_every_evaluation(tmp_path: Path) -> None:
    config = EvalCommandConfig(policy="expert", suite=SUITE, episodes=2, videos=1, out=str(tmp_path))
    results = evaluate_command(config)
    assert (results.successes, results.errors) == (2, 0)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["versions"]["robosuite"] == "1.4.0"
    with av.open(str(tmp_path / content["per_episode"][0]["video"])) as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert frames == -(-content["per_episode"][0]["steps"] // 4) + 1


def test_an_episode_is_the_same_with_a_recording_and_read_back_as_it_was(
    simulator: Simulator, tmp_path: Path
) -> None:
    alone = run_episode(simulator, ExpertPolicy(), 4)
    recorder = EpisodeRecorder(RecordingPlace(tmp_path / "episodes", PIXELS), lambda: None)
    result = recorder.store(run_episode(simulator, ExpertPolicy(), 4, observer=recorder), simulator.task)
    assert (result.actions_sha256, result.steps) == (alone.actions_sha256, alone.steps)
    assert (result.success, result.recording_error) == (True, None)
    episode = RecordedEpisode.read(episode_folder(tmp_path / "episodes", 0, 4))
    write_data_set(tmp_path / "set", [episode], PIXELS)
    (demonstration,) = read_demonstrations(SourceConfig(source=str(tmp_path / "set")))
    assert demonstration.instruction == simulator.task.instruction
    np.testing.assert_array_equal(demonstration.actions, episode.actions)
    simulator.reset(4)
    script = demonstrate(simulator)
    for step in range(21):
        state = simulator.state()  # as in an episode, before the expert looks at poses
        action = next(script)
        if step in (0, 1, 20):
            np.testing.assert_array_equal(demonstration.states[step], state.astype(np.float32))
            np.testing.assert_array_equal(demonstration.actions[step], action.astype(np.float32))
            for camera, frames in demonstration.frames.items():
                seen = simulator.render(camera, PIXELS).astype(int)
                assert np.abs(frames[step] - seen).mean() < 4, "what the codec loses"
        simulator.step(action)


def test_expert_solves_other_initial_states(simulator: Simulator) -> None:
    solved = 0
    for number in range(10, 16):
        simulator.reset(number)
        for action in demonstrate(simulator):
            simulator.step(action)
        solved += simulator.success
    assert solved == 6


@pytest.mark.parametrize("suite", ["robosuite_lift_camera", "robosuite_lift_noise"])
def test_perturbed_views_are_of_the_same_episode(simulator: Simulator, suite: str) -> None:
    simulator.reset(3)
    plain, wrist = (simulator.render(camera, PIXELS) for camera in ("agent", "wrist"))
    perturbed = open_suite(suite)
    names = [task.name for task in perturbed.tasks]
    assert len(set(names)) == len(names) == 10
    changed = perturbed.open(9)
    try:
        assert changed.task.name == names[9]
        changed.reset(3)
        np.testing.assert_allclose(changed.sim_state(), simulator.sim_state(), atol=1e-9)
        seen = changed.render("agent", PIXELS)
        assert np.abs(seen.astype(int) - plain).mean() > 1
        assert np.array_equal(seen, changed.render("agent", PIXELS)), "one frame, one noise"
        assert np.array_equal(changed.render("wrist", PIXELS), wrist), "only the agent camera is changed"
    finally:
        changed.close()
