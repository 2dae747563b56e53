"""Demonstrations that are there already: kept if the same settings recorded them, else refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest

from data.errors import InputError
from eval.config import CollectConfig
from eval.demonstrations import collect as collect_module
from eval.demonstrations.collect import collect
from tests.support.fake_simulator import TASK, FakeSimulator, FakeSuite


class AnyState(FakeSimulator):
    """Takes initial states of every number."""

    def reset(self, initial_state: int) -> None:
        super().reset(initial_state % 3)


@pytest.fixture(autouse=True)
def simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    made = AnyState()
    monkeypatch.setattr(collect_module, "open_suite", lambda name: FakeSuite())
    monkeypatch.setattr(collect_module, "cached_simulator", lambda suite, task: made)


def config_of(folder: Path, **options: Any) -> CollectConfig:
    return CollectConfig(
        **{"suite": "fake", "episodes": 1, "resolution": 16, "workers": 1, **options}, out=str(folder)
    )


def test_demonstrations_of_the_same_settings_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = collect(config_of(tmp_path))
    content = first.path.read_bytes()
    monkeypatch.setattr("eval.demonstrations.collect.WorkerPool", None)  # no simulator is started
    assert collect(config_of(tmp_path, workers=2)) == [replace(first, kept=True)]
    assert first.path.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"episodes": 2}, "episodes: found 1, now 2"),
        ({"seed": 1001}, "seed: found 1000, now 1001"),
        ({"resolution": 32}, "resolution: found 16, now 32"),
        ({"displaced": 0.5}, "displaced: found 0.0, now 0.5"),
        (
            {"versions": {"robosuite": "1.5"}},
            "versions: found {'robosuite': '1.4.0'}, now {'robosuite': '1.5'}",
        ),
    ],
)
def test_demonstrations_of_other_settings_are_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], change: str
) -> None:
    (first,) = collect(config_of(tmp_path))
    content = first.path.read_bytes()
    monkeypatch.setattr("eval.demonstrations.collect.WorkerPool", None)
    if versions := options.pop("versions", None):
        monkeypatch.setattr(FakeSuite, "versions", lambda suite: versions)
    with pytest.raises(InputError, match=re.escape(f"of other settings ({change}); choose another out")):
        collect(config_of(tmp_path, **options))
    assert first.path.read_bytes() == content


def not_hdf5(path: Path) -> None:
    path.write_bytes(b"by hand")


def of_another_writer(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["data"].attrs["collection"]


def without_demonstrations(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = 1


@pytest.mark.parametrize("damage", [not_hdf5, of_another_writer, without_demonstrations, Path.mkdir])
def test_demonstrations_of_another_writer_are_not_replaced(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    (first,) = collect(config_of(tmp_path))
    if damage is Path.mkdir:
        first.path.unlink()
    damage(first.path)
    with pytest.raises(InputError, match="has demonstrations already, of another writer"):
        collect(config_of(tmp_path))
    assert first.path.exists()


def test_an_interrupted_collection_goes_on_with_the_tasks_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = tuple(replace(TASK, number=number, name=f"task_{number}") for number in range(3))
    monkeypatch.setattr(FakeSuite, "tasks", tasks)

    def interrupt(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(config_of(tmp_path), interrupt)
    (kept,) = tmp_path.iterdir()
    content, reported = kept.read_bytes(), list[tuple[int, int]]()
    collected = collect(config_of(tmp_path), lambda *done: reported.append(done))
    assert [each.kept for each in collected] == [True, False, False]
    assert [each.path.name for each in collected] == [f"task_{number}_demo.hdf5" for number in range(3)]
    assert reported == [(2, 3), (3, 3)]
    assert kept.read_bytes() == content
