from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data.config import SourceConfig
from data.errors import InputError
from data.sources.libero.motion import read_motion
from data.sources.registry import open_source, read_demonstrations
from eval.config import CollectConfig
from eval.demonstrations import collect as collect_module
from eval.demonstrations.collect import collect
from eval.demonstrations.displacement import displace
from eval.demonstrations.hdf5_writer import write_demonstrations
from eval.demonstrations.recording import record, replay
from eval.expert.arm import OPEN
from eval.simulator import rendering
from eval.simulator.registry import open_suite
from tests.support.fake_simulator import TASK, FakeSimulator, FakeSuite
from tests.support.full_disk import MESSAGE, fill


def opened(path: Path) -> Any:
    """h5py's stubs know too little of what a file holds."""
    return h5py.File(path)


class DropsCube(FakeSimulator):
    """Loses the cube from odd initial states."""

    def reset(self, initial_state: int) -> None:
        super().reset(initial_state % 3)
        self.slips = initial_state % 2 == 1

    def step(self, action: np.ndarray) -> None:
        super().step(action)
        if self.slips:
            self.cube[2] = 0.02


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> FakeSimulator:
    made = DropsCube()
    monkeypatch.setattr(collect_module, "open_suite", lambda name: FakeSuite())
    monkeypatch.setattr(collect_module, "cached_simulator", lambda suite, task: made)
    return made


@pytest.mark.usefixtures("simulator")
def test_collected_files_are_read_back_upright_and_hold_only_successes(tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    config = CollectConfig(suite="fake", episodes=2, out=str(tmp_path), resolution=16, workers=1)
    collected = collect(config, progress=lambda *done: reported.append(done))
    assert reported == [(1, 2), (2, 2)]
    assert (collected[0].episodes, collected[0].attempts) == (2, 3)  # 1001 slips
    with opened(collected[0].path) as file:
        assert file["data"].attrs["num_demos"] == 2
        assert file["data"].attrs["macros_image_convention"] == "opengl"
        assert [file[f"data/demo_{i}"].attrs["initial_state_number"] for i in (0, 1)] == [1000, 1002]
        environment = json.loads(file["data"].attrs["env_args"])
        assert (environment["env_name"], environment["type"]) == ("Fake", 1)
        assert environment["env_kwargs"] == FakeSimulator().environment_arguments()
        dones = file["data/demo_0/dones"][:]
        assert dones[-1] == 1
        assert dones.sum() == 1
        assert file["data/demo_0/robot_states"].shape == (len(dones), 9)
    demonstrations = list(read_demonstrations(SourceConfig(str(tmp_path))))
    assert [d.key for d in demonstrations] == ["fake_lift/demo_0", "fake_lift/demo_1"]
    assert demonstrations[0].instruction == "lift the fake cube"
    assert demonstrations[0].suite == "fake"
    steps = len(demonstrations[0].actions)
    assert demonstrations[0].states.shape == (steps, 8)
    assert set(demonstrations[0].frames) == {"agent", "wrist"}
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.usefixtures("simulator")
def test_files_of_perturbed_tasks_say_what_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CollectConfig(suite="fake", episodes=1, out=str(tmp_path), resolution=16, workers=1)
    (plain,) = collect(replace(config, out=str(tmp_path / "plain")))
    with opened(plain.path) as file:
        assert "perturbation" not in file["data"].attrs
    monkeypatch.setattr(FakeSuite, "tasks", (replace(TASK, name="lift_view_15", category="camera"),))
    (perturbed,) = collect(config)
    with opened(perturbed.path) as file:
        attributes = file["data"].attrs
        assert (attributes["perturbation"], attributes["task"]) == ("camera", "lift_view_15")


def test_quaternions_keep_the_sign_of_turns_beyond_pi(tmp_path: Path, simulator: FakeSimulator) -> None:
    angle = 3.4
    simulator.state = lambda: np.array([0.1, 0.2, 0.3, 0, angle, 0, 0.04, -0.04])  # type: ignore[method-assign]
    collect(CollectConfig(suite="fake", episodes=1, out=str(tmp_path), resolution=16, workers=1))
    with opened(tmp_path / "fake_lift_demo.hdf5") as file:
        robot, data = file["data/demo_0/robot_states"][0], dict(file["data"].attrs)
    expected = [0.04, -0.04, 0.1, 0.2, 0.3, 0, np.sin(angle / 2), 0, np.cos(angle / 2)]
    assert robot == pytest.approx(expected)
    assert data["state_orientation"] == "hand_body"
    assert not open_source(SourceConfig(str(tmp_path))).references()[0].turned_states


def test_frames_are_stored_upside_down(tmp_path: Path, simulator: FakeSimulator) -> None:
    picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    simulator.render = lambda camera, pixels: picture  # type: ignore[method-assign]
    collect(CollectConfig(suite="fake", episodes=1, out=str(tmp_path), resolution=16, workers=1))
    with opened(tmp_path / "fake_lift_demo.hdf5") as file:
        stored = file["data/demo_0/obs/agentview_rgb"][0]
    np.testing.assert_array_equal(stored, picture[::-1, ::-1])
    demonstration = next(read_demonstrations(SourceConfig(str(tmp_path))))
    np.testing.assert_array_equal(demonstration.frames["agent"][0], picture)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"episodes": 0}, "episodes=0"),
        ({"seed": 7}, "evaluation's initial states"),
        ({"workers": 0}, "workers=0"),
        ({"displaced": 1.5}, "displaced=1.5"),
        ({"displaced": -0.1}, "displaced=-0.1"),
        ({"out": "/proc/nowhere"}, "cannot write into this folder"),
        ({"out": "/proc"}, "cannot write into this folder"),
    ],
)
@pytest.mark.usefixtures("simulator")
def test_wrong_settings_are_explained(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        collect(CollectConfig(**{"suite": "fake", "out": str(tmp_path), **options}))


def test_expert_that_fails_too_often_writes_nothing(tmp_path: Path, simulator: FakeSimulator) -> None:
    simulator.breaks_at = None
    simulator.goals = lambda: ()  # type: ignore[method-assign]
    with pytest.raises(InputError, match="solved 0 of 6"):
        collect(CollectConfig(suite="fake", episodes=1, out=str(tmp_path), workers=1))
    assert list(tmp_path.iterdir()) == []


def test_broken_simulator_is_a_failed_attempt(tmp_path: Path, simulator: FakeSimulator) -> None:
    simulator.breaks_at = 3
    with pytest.raises(InputError, match="solved 0 of 6"):
        collect(CollectConfig(suite="fake", episodes=1, out=str(tmp_path), workers=1))


def test_recording_replays_and_a_changed_one_does_not() -> None:
    recording = record(FakeSimulator(), 1, 16)
    assert recording is not None
    actions, start = recording.actions, recording.sim_states[0]
    assert replay(FakeSimulator(), actions, start, 1)
    never_closed = actions * [1, 1, 1, 1, 1, 1, 0] - [0, 0, 0, 0, 0, 0, 1]
    assert not replay(FakeSimulator(), never_closed, start, 1)


def test_a_displaced_demonstration_begins_elsewhere_and_cannot_be_replayed(tmp_path: Path) -> None:
    simulator = FakeSimulator()
    plain, moved, again = (record(simulator, 1, 16, displaced) for displaced in (0.0, 1.0, 1.0))
    assert plain is not None
    assert moved is not None
    assert again is not None
    assert (plain.displaced, moved.displaced) == (False, True)
    start = moved.sim_states[0][:3]
    assert np.linalg.norm(start - plain.sim_states[0][:3]) > 0.02
    cube = plain.sim_states[0][3:]
    assert (abs(start - cube) <= [0.08 + 0.025, 0.08 + 0.025, 0.2]).all()
    assert moved.actions[0, 6] == OPEN  # whatever the fingers were moved to before, it opens them
    np.testing.assert_array_equal(moved.sim_states, again.sim_states)  # drawn from the initial state's number
    write_demonstrations(tmp_path / "fake_lift_demo.hdf5", TASK, [plain, moved], {}, False)
    first, second = open_source(SourceConfig(str(tmp_path))).references()
    assert read_motion(first).initial_state == 1
    with pytest.raises(InputError, match=r"demo_1: was collected with displaced, .* replay=false"):
        read_motion(second)


def test_the_share_of_displaced_demonstrations_is_the_asked_one() -> None:
    moved = sum(displace(FakeSimulator(), state, 0.7) for state in range(1000, 1200))
    assert 120 <= moved <= 160


def test_unknown_suite_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean libero_object"):
        open_suite("libero_objects")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("libero_plus_camra", "suite=libero_plus_camra: no such suite; did you mean libero_plus_camera "),
        (
            "LIBERO_Pro_goal_task",
            "suite=LIBERO_Pro_goal_task: no such suite; did you mean libero_pro_goal_task ",
        ),
        ("libero_plus_lights", "suite=libero_plus_lights: no such suite; did you mean libero_plus_light "),
        (
            "libero_plus_light",
            "suite=libero_plus_light cannot be evaluated: .*; there are libero_plus, libero",
        ),
        (
            "",
            "suite=: no such suite; there are robosuite_lift, .*libero_pro_10 .these also with",
        ),
    ],
)
def test_a_wrong_suite_is_a_line_that_begins_with_what_was_meant(name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as raised:
        open_suite(name)
    assert len(str(raised.value)) < 450


def test_missing_renderer_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(InputError, match=r"apt-get install .* libosmesa6"):
        rendering.choose_backend()
    with pytest.raises(InputError, match=r"apt-get install .* libosmesa6"):
        open_suite("robosuite_lift")  # refused before any process starts
    monkeypatch.setenv("MUJOCO_GL", "opengl")
    with pytest.raises(InputError, match="MUJOCO_GL=opengl: expected one of osmesa, egl, glfw"):
        rendering.choose_backend()


def test_two_renderers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: f"lib{name}.so")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "osmesa")
    with pytest.raises(InputError, match="MUJOCO_GL=egl and PYOPENGL_PLATFORM=osmesa name two renderers"):
        rendering.choose_backend()
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    assert rendering.choose_backend() == "egl"


@pytest.fixture
def gpu_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs and every renderer, where the user has chosen none."""
    for number, uuid in enumerate(("GPU-11111111-aaaa", "GPU-22222222-bbbb")):
        folder = tmp_path / f"0000:{number}a:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t H200\nGPU UUID: \t {uuid}\n")
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/nvidia0" or exists(path))
    monkeypatch.setattr(rendering, "_GPUS", tmp_path)
    monkeypatch.setattr(rendering, "_defaults", {})
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: f"lib{name}.so")
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")  # undone afterwards
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("visible", "chosen", "backend", "device"),
    [
        (None, None, "egl", None),
        ("1", None, "egl", "1"),
        ("3,2", None, "egl", "3"),
        ("GPU-22222222-bbbb", None, "egl", "1"),
        ("GPU-2222", None, "egl", "1"),
        ("MIG-33333333", None, "egl", "0"),
        ("", None, "osmesa", None),
        ("-1", None, "osmesa", None),
        ("NoDevFiles", None, "osmesa", None),
        ("", "egl", "egl", "0"),
        ("1", "osmesa", "osmesa", None),
    ],
)
@pytest.mark.usefixtures("gpu_machine")
def test_a_simulator_renders_on_the_gpu_of_its_process(
    visible: str | None, chosen: str | None, backend: str, device: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if chosen is not None:
        monkeypatch.setenv("MUJOCO_GL", chosen)
    assert rendering.choose_backend() == backend
    assert os.environ.get("MUJOCO_EGL_DEVICE_ID") == device
    assert rendering.is_default("MUJOCO_GL", backend) == (chosen is None)


@pytest.mark.usefixtures("gpu_machine")
def test_the_users_device_for_rendering_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-22222222-bbbb")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "5")
    rendering.choose_backend()
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "5"
    assert not rendering.is_default("MUJOCO_EGL_DEVICE_ID", "5")


def test_robosuite_is_imported_beside_a_uuid() -> None:
    """Its own check looks for the device's number in CUDA_VISIBLE_DEVICES as text."""
    program = (
        "from eval.simulator.rendering import quiet_robosuite; quiet_robosuite(); "
        "import os, robosuite.utils.binding_utils; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    environment = {**os.environ, "MUJOCO_EGL_DEVICE_ID": "0", "CUDA_VISIBLE_DEVICES": "GPU-11111111-aaaa"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout == "GPU-11111111-aaaa\n", done.stderr


@pytest.mark.usefixtures("simulator")
def test_a_full_disk_leaves_no_file_of_demonstrations(tmp_path: Path) -> None:
    path = tmp_path / "fake_lift_demo.hdf5"
    fill(path)
    path.unlink()
    config = CollectConfig(suite="fake", episodes=2, out=str(tmp_path), resolution=16, workers=1)
    with pytest.raises(OSError, match=MESSAGE) as raised:
        collect(config)
    assert raised.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []
    collect(config)
    assert len(list(read_demonstrations(SourceConfig(str(tmp_path))))) == 2


def test_simulators_are_not_imported_before_they_are_opened() -> None:
    code = (
        "import eval.evaluation.evaluate, eval.demonstrations.collect, sys; "
        "print(any(m in sys.modules for m in ('torch', 'mujoco')))"
    )
    import subprocess

    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
