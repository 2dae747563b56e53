from __future__ import annotations

from pathlib import Path

from cluster.run.checkpoint_watch import CheckpointWatch, due_steps, evaluated_steps
from pretrain.checkpoint.location import CheckpointLocation, step_folder


def test_only_complete_checkpoints_count(tmp_path: Path) -> None:
    watch = CheckpointWatch(CheckpointLocation(tmp_path))
    for step in (100, 20):
        step_folder(tmp_path, step).mkdir()
        (step_folder(tmp_path, step) / "READY").touch()
    step_folder(tmp_path, 300).mkdir()  # still being written
    for name in ("step_00000400.tmp-1", "step_5"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "READY").touch()
    assert watch.steps() == [20, 100]
    (step_folder(tmp_path, 300) / "READY").touch()
    assert watch.steps() == [20, 100, 300]
    assert CheckpointWatch(CheckpointLocation(tmp_path / "missing")).steps() == []


def test_evaluated_steps_are_those_with_results(tmp_path: Path) -> None:
    for step in (1, 2):
        step_folder(tmp_path, step).mkdir()
    (step_folder(tmp_path, 2) / "results.json").touch()
    assert evaluated_steps(tmp_path) == {2}


def test_multiples_and_the_last_step_are_due_once() -> None:
    committed = [50, 100, 150, 200, 230]
    assert due_steps(committed, every=100, last=230, done=[]) == [100, 200, 230]
    assert due_steps(committed, every=100, last=230, done={100, 230}) == [200]
    assert due_steps(committed, every=0, last=230, done=[]) == []
