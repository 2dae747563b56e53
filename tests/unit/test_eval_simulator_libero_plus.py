"""LIBERO-Plus: what a task's name says, where its camera stands, what its noise does to a frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from eval.simulator.libero.initial_states import pickled_states
from eval.simulator.libero.plus import parse_task
from eval.simulator.libero.plus_camera import CameraView, moved_camera
from eval.simulator.libero.plus_noise import NOISE_PIXELS, SensorNoise
from eval.simulator.libero.robot_posture import initial_joints

SUITE, BASE = "libero_spatial", "pick_up_the_black_bowl_from_table_center_and_place_it_on_the_plate"
PLAIN = "view_0_0_100_0_0"
AGENT_CAMERA = (
    [0.6586131746834771, 0.0, 1.6103500240372423],
    [0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349],
)


@pytest.mark.parametrize(
    ("name", "category", "problem"),
    [
        (f"{BASE}_view_15_-10_120_5_-3_initstate_0", "camera", BASE),
        (f"{BASE}_{PLAIN}_initstate_37", "robot", BASE),
        (f"{BASE}_{PLAIN}_initstate_0_noise_12", "noise", BASE),
        (f"{BASE}_language_4_{PLAIN}_initstate_0", "language", f"{BASE}_language_4"),
        (f"{BASE}_level2_sample3", "layout", f"{BASE}_level2_sample3"),
        (f"{BASE}_moved_level1_sample1", "layout", f"{BASE}_moved_level1_sample1"),
    ],
)
def test_the_name_of_a_task_tells_what_is_changed(name: str, category: str, problem: str) -> None:
    task = parse_task(name, SUITE)
    assert task is not None
    assert (task.base, task.category, task.problem) == (BASE, category, problem)
    assert task.arm == (37 if category == "robot" else 0)
    assert task.noise == (12 if category == "noise" else 0)
    assert task.camera == (CameraView(15, -10, 1.2, 5, -3) if category == "camera" else CameraView())


@pytest.mark.parametrize(
    "name", [f"{BASE}_light_3", f"{BASE}_table_1", f"{BASE}_tb_2", f"{BASE}_add_7", BASE]
)
def test_tasks_that_need_further_assets_are_none(name: str) -> None:
    assert parse_task(name, SUITE) is None


@pytest.mark.parametrize(
    ("view", "position", "quaternion"),
    [  # as LIBERO-Plus' own functions give
        (CameraView(), [0.6586, 0.0, 1.6104], [0.638, 0.3048, 0.3048, 0.638]),
        (CameraView(30, -10, 1.25, 5, -3), [0.8545, 0.4933, 1.6546], [0.3856, 0.2546, 0.461, 0.7576]),
    ],
)
def test_cameras_stand_where_libero_plus_puts_them(
    view: CameraView, position: list[float], quaternion: list[float]
) -> None:
    place, orientation = moved_camera(*AGENT_CAMERA, view)
    np.testing.assert_array_equal(place, position)
    np.testing.assert_array_equal(orientation, quaternion)


def frame() -> np.ndarray:
    """A frame of smooth colours with one sharp edge."""
    side = np.arange(NOISE_PIXELS, dtype=np.uint8)
    colours = np.stack([np.broadcast_to(side, (NOISE_PIXELS, NOISE_PIXELS)), side[:, None] + 0 * side], -1)
    return np.concatenate([colours, np.where(colours[..., :1] < 100, 0, 200).astype(np.uint8)], axis=-1)


@pytest.mark.parametrize("number", [1, 10, 11, 20, 21, 30, 31, 40, 41, 50])
def test_noise_depends_on_its_seed_alone(number: int) -> None:
    noise, clean = SensorNoise(number), frame()
    noisy = noise.apply(clean, np.random.default_rng(3))
    np.testing.assert_array_equal(noise.apply(clean, np.random.default_rng(3)), noisy)
    np.testing.assert_array_equal(clean, frame())
    assert noisy.dtype == np.uint8
    assert noisy.shape == clean.shape
    difference = np.abs(noisy.astype(int) - clean)
    assert 0.05 < difference.mean() < 110
    is_random = number <= 10 or number > 30
    other = noise.apply(clean, np.random.default_rng(4))
    assert np.array_equal(noisy, other) != is_random


def test_noise_grows_with_its_severity() -> None:
    clean = frame().astype(int)
    for first in (1, 11, 21, 31):
        weak, strong = (
            np.abs(SensorNoise(number).apply(frame(), np.random.default_rng(0)) - clean).mean()
            for number in (first, first + 9)
        )
        assert strong > 1.5 * weak, first


def test_motion_blur_smears_along_one_line() -> None:
    point = np.zeros((NOISE_PIXELS, NOISE_PIXELS, 3), np.uint8)
    point[128, 128] = 255

    class Horizontal(np.random.Generator):
        def uniform(self, *limits: object) -> float:  # type: ignore[override]
            return 0.0

    blurred = SensorNoise(10).apply(point, Horizontal(np.random.PCG64(0)))
    assert set(np.nonzero(blurred[..., 0])[0]) == {128}
    columns = np.nonzero(blurred[128, :, 0])[0]
    assert columns.min() < 110
    assert columns.max() == 128
    weights = np.exp(-(np.arange(71) ** 2) / (2 * 20**2))
    expected = np.floor(255 * weights / weights.sum())
    np.testing.assert_allclose(blurred[128, 128 - 70 : 129, 0], expected[::-1], atol=1)


def test_arms_are_read_without_importing_the_package(tmp_path: Path) -> None:
    folder = tmp_path / "envs" / "robots"
    folder.mkdir(parents=True)
    for file, base in (("mounted_panda.py", "MountedPanda"), ("on_the_ground_panda.py", "OnTheGroundPanda")):
        (folder / file).write_text(
            f"raise SystemExit('imported')\nclass {base}: pass\n"
            f"class {base}7({base}):\n  @property\n  def init_qpos(self):\n"
            "    return np.array([1.0, -2,\n 3e-1])\n"
        )
    expected = {"MountedPanda7": (1.0, -2.0, 0.3), "OnTheGroundPanda7": (1.0, -2.0, 0.3)}
    assert initial_joints(tmp_path) == expected
    with pytest.raises(InputError, match=r"mounted_panda.py: cannot be read .*reinstall LIBERO-Plus"):
        initial_joints(tmp_path / "none")


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


def test_initial_states_are_read_and_nothing_else_is_run(tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(3, 5))
    torch.save(states, tmp_path / "many")
    torch.save(states[1], tmp_path / "one")
    np.testing.assert_array_equal(pickled_states(tmp_path / "many"), states)
    np.testing.assert_array_equal(pickled_states(tmp_path / "one"), states[1:2])
    torch.save(Hostile(), tmp_path / "hostile")
    for name in ("hostile", "none"):
        with pytest.raises(InputError, match=rf"{name}: no initial states .*reinstall"):
            pickled_states(tmp_path / name)
