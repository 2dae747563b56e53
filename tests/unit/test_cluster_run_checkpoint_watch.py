from __future__ import annotations

from pathlib import Path

from cluster.run.checkpoint_watch import CheckpointWatch, due_steps, evaluated_steps
from pretrain.checkpoint.location import CheckpointLocation, step_folder


def commit(folder: Path, *steps: int) -> None:
    for step in steps:
        step_folder(folder, step).mkdir(parents=True, exist_ok=True)
        (step_folder(folder, step) / "READY").touch()


def test_only_committed_checkpoints_are_listed(tmp_path: Path) -> None:
    watch = CheckpointWatch(CheckpointLocation(tmp_path))
    commit(tmp_path, 100, 20)
    step_folder(tmp_path, 300).mkdir()  # still being written
    for name in ("step_00000400.tmp-1", "step_5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "READY").touch()
    assert watch.steps() == [20, 100]
    commit(tmp_path, 300)
    assert watch.steps() == [20, 100, 300]
    assert CheckpointWatch(CheckpointLocation(tmp_path / "missing")).steps() == []


class RemoteFolder(CheckpointLocation):
    """A folder that counts as an object store; counts its listings."""

    listings = 0

    @property
    def is_remote(self) -> bool:
        return True

    def steps(self) -> list[int]:
        self.listings += 1
        return super().steps()


def test_an_object_store_is_listed_every_ten_seconds_and_on_demand(tmp_path: Path) -> None:
    store, now = RemoteFolder(tmp_path), [0.0]
    watch = CheckpointWatch(store, clock=lambda: now[0])
    assert watch.steps() == []
    commit(tmp_path, 1)
    now[0] = 9.9
    assert (watch.steps(), store.listings) == ([], 1)
    now[0] = 10.0
    assert (watch.steps(), store.listings) == ([1], 2)
    commit(tmp_path, 2)
    assert (watch.steps(refresh=True), store.listings) == ([1, 2], 3)


def test_evaluated_steps_are_those_with_results(tmp_path: Path) -> None:
    for step in (1, 2):
        step_folder(tmp_path, step).mkdir()
    (step_folder(tmp_path, 2) / "results.json").touch()
    assert evaluated_steps(tmp_path) == {2}


def test_multiples_and_the_last_step_are_due_once() -> None:
    committed = [50, 100, 150, 200, 230]
    assert due_steps(committed, every=100, last=230, submitted=[]) == [100, 200, 230]
    assert due_steps(committed, every=100, last=230, submitted={100, 230}) == [200]
    assert due_steps(committed, every=0, last=230, submitted=[]) == []
