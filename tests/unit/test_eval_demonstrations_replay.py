"""Replay of demonstrations: successes are recorded anew, failures are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data.config import SourceConfig
from data.errors import InputError
from data.sources.interface import DemonstrationReference
from data.sources.libero.motion import read_motion
from data.sources.no_ops import moving_steps
from data.sources.registry import open_source
from eval.config import CollectConfig
from eval.demonstrations import collect as collect_module
from eval.demonstrations import replay as replay_module
from eval.demonstrations.collect import collect
from eval.demonstrations.replay import replay_demonstration
from tests.support.fake_simulator import TASK, FakeSimulator


class FakeSuite:
    name, tasks, standin_assets = "fake", (TASK,), False

    def versions(self) -> dict[str, str]:
        return {}


class NearCube(FakeSimulator):
    """Its cube is within reach for every initial state."""

    def reset(self, initial_state: int) -> None:
        super().reset(initial_state % 3)


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> FakeSimulator:
    made = NearCube()
    for module in (collect_module, replay_module):
        monkeypatch.setattr(module, "open_suite", lambda name: FakeSuite())
        monkeypatch.setattr(module, "cached_simulator", lambda suite, task: made)
    return made


@pytest.fixture
def reference(tmp_path: Path, simulator: FakeSimulator) -> DemonstrationReference:
    collect(CollectConfig(suite="fake", episodes=1, out=str(tmp_path), resolution=16, workers=1))
    return open_source(SourceConfig(str(tmp_path))).references()[0]


def change(reference: DemonstrationReference, name: str, edit: Any) -> None:
    with h5py.File(reference.path, "a") as file:
        demo: Any = file[f"data/{reference.item}"]
        values = demo[name][()]
        del demo[name]
        changed = edit(values)
        if changed is not None:
            demo[name] = changed


def test_success_is_rendered_again_at_the_requested_size(
    reference: DemonstrationReference, simulator: FakeSimulator
) -> None:
    motion = read_motion(reference)
    moving = motion.actions[moving_steps(motion.actions)]
    assert 0 < len(moving) <= reference.length
    replayed = replay_demonstration(reference, 32)
    assert replayed is not None
    assert set(replayed.frames) == {"agent", "wrist"}
    assert replayed.frames["agent"].shape == (len(moving), 32, 32, 3)
    assert np.array_equal(replayed.actions, moving)
    assert replayed.frames["agent"][:, 0, 0, 0].tolist() == list(range(len(moving))), (
        "rendered before each action"
    )
    assert replayed.states.dtype == np.float32
    assert np.allclose(replayed.states[0, :3], motion.first_physics[:3])
    assert simulator.success


def test_failure_is_left_out(reference: DemonstrationReference) -> None:
    def never_closes(actions: np.ndarray) -> np.ndarray:
        actions[:, 6] = -1
        return actions

    change(reference, "actions", never_closes)
    assert replay_demonstration(reference, 16) is None


def test_simulator_error_counts_as_a_failure(
    reference: DemonstrationReference, simulator: FakeSimulator
) -> None:
    simulator.breaks_at = 3
    assert replay_demonstration(reference, 16) is None


def test_error_explains_why_a_file_cannot_be_replayed(reference: DemonstrationReference) -> None:
    path = Path(reference.path)
    renamed = path.with_name("other_demo.hdf5")
    path.rename(renamed)
    other = open_source(SourceConfig(str(renamed))).references()[0]
    with pytest.raises(
        InputError, match="suite fake has no task other; name the file after one of its 1 tasks"
    ):
        replay_demonstration(other, 16)
    renamed.rename(path)
    change(reference, "states", lambda states: states[:0])
    with pytest.raises(InputError, match=r"expected the simulator's \[T, D\]"):
        replay_demonstration(reference, 16)
    change(reference, "states", lambda states: None)
    with pytest.raises(InputError, match="no dataset `states`"):
        replay_demonstration(reference, 16)
