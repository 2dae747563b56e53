"""What a run resumes from: its own checkpoints, not those of another run; `resume` at its first start."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from pretrain.checkpoint.location import CheckpointLocation, step_folder
from pretrain.checkpoint.manifest import Manifest, StoredTensor
from pretrain.checkpoint.origin import HISTORY, Origin, OriginChoice, choose_origin, set_aside_newest
from pretrain.checkpoint.ready import DamagedCheckpointError
from pretrain.config import CheckpointingConfig, RunConfig, TrainingConfig
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import expected_shapes

STATES = ("master", "exp_avg", "exp_avg_sq")


@functools.cache
def default_shapes() -> dict[str, tuple[int, ...]]:
    return expected_shapes(ModelConfig())


def commit_step(root: Path, step: int, metadata: dict[str, Any], states: tuple[str, ...] = STATES) -> str:
    folder = step_folder(root, step)
    folder.mkdir(parents=True)
    shapes = default_shapes().items()
    tensors = {f"{state}/{name}": StoredTensor(shape) for state in states for name, shape in shapes}
    Manifest(step, step, metadata, tensors, {}).write(folder)
    return str(folder)


def choose(root: Path, run: str = "run", url: str | None = None, resume: str = "auto") -> OriginChoice:
    checkpointing = CheckpointingConfig(url=url, resume=resume)
    config = TrainingConfig(run=RunConfig(name=run), checkpointing=checkpointing)
    return choose_origin(config, CheckpointLocation(url or root))


def origin(root: Path, run: str, url: str | None, resume: str = "auto") -> Origin | None:
    return choose(root, run, url, resume).origin


def test_location_of_another_run_is_refused(tmp_path: Path) -> None:
    newest = commit_step(tmp_path, 2, {"config": {"run": {"name": "first"}}})
    assert origin(tmp_path, "first", str(tmp_path)) == Origin(newest, resumes=True)
    for resume in ("auto", "elsewhere/step_00000004"):  # it would write there as well
        with pytest.raises(InputError, match="holds checkpoints of the run first, this one is second; give"):
            origin(tmp_path, "second", str(tmp_path), resume)


def test_run_folder_may_be_renamed(tmp_path: Path) -> None:
    newest = commit_step(tmp_path, 2, {"config": {"run": {"name": "first"}}})
    assert origin(tmp_path, "second", None) == Origin(newest, resumes=True)


@pytest.mark.parametrize("metadata", [{"tokens": 0}, {"config": "none"}, {"config": {"run": 3}}])
def test_checkpoint_without_the_name_of_a_run_is_accepted(tmp_path: Path, metadata: dict[str, Any]) -> None:
    newest = commit_step(tmp_path, 2, metadata)
    assert origin(tmp_path, "second", str(tmp_path)) == Origin(newest, resumes=True)


def test_a_named_checkpoint_is_taken_until_the_run_has_one_that_descends_from_it(tmp_path: Path) -> None:
    own, other = tmp_path / "own", commit_step(tmp_path / "other", 10, {HISTORY: ["none"]})
    first = choose(own, resume=other)
    assert first.origin == Origin(other, resumes=True, named=True)
    assert first.history == ("none", other)
    assert choose(own, resume=other) == first, "a restart before the first checkpoint"
    newest = commit_step(own, 20, {HISTORY: list(first.history)})
    for resume in (other, f"{other}/", f"file://{other}", "auto", "none"):
        again = choose(own, resume=resume)
        assert (again.origin, again.history) == (Origin(newest, resumes=True), first.history), resume
    third = commit_step(tmp_path / "third", 30, {})
    assert choose(own, resume=third).origin == Origin(third, resumes=True, named=True)


def test_a_relative_path_is_the_same_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_step(tmp_path / "other", 10, {})
    monkeypatch.chdir(tmp_path)
    history = choose(tmp_path / "own", resume="other/step_00000010").history
    newest = commit_step(tmp_path / "own", 20, {HISTORY: list(history)})
    assert origin(tmp_path / "own", "run", None, "./other/step_00000010") == Origin(newest, resumes=True)


def test_the_named_checkpoint_need_not_exist_any_more(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone" / "step_00000010")
    newest = commit_step(tmp_path / "own", 20, {HISTORY: [gone]})
    assert origin(tmp_path / "own", "run", None, gone) == Origin(newest, resumes=True)
    with pytest.raises(InputError, match="no committed checkpoint"):
        origin(tmp_path / "own", "run", None, f"{gone}1")


def test_going_back_to_an_own_checkpoint_supersedes_the_later_ones(tmp_path: Path) -> None:
    commit_step(tmp_path, 10, {})
    back = commit_step(tmp_path, 20, {})
    commit_step(tmp_path, 30, {})
    commit_step(tmp_path, 40, {})
    choice = choose(tmp_path, resume=back)
    assert choice.origin == Origin(back, resumes=True, named=True)
    assert choice.superseded == [30, 40]


def test_none_refuses_an_earlier_run_and_resumes_its_own(tmp_path: Path) -> None:
    first = choose(tmp_path, resume="none")
    assert (first.origin, first.history) == (None, ("none",))
    newest = commit_step(tmp_path, 10, {HISTORY: ["none"]})
    assert origin(tmp_path, "run", None, "none") == Origin(newest, resumes=True)
    commit_step(tmp_path, 20, {HISTORY: []})
    with pytest.raises(InputError, match=r"resume=none, but .*step_00000020 is there; choose another"):
        choose(tmp_path, resume="none")


def test_checkpoints_of_an_earlier_version_keep_the_last_value(tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    newest = commit_step(tmp_path, 10, {"config": {"checkpointing": {"resume": elsewhere}}})
    assert choose(tmp_path, resume=elsewhere).origin == Origin(newest, resumes=True)
    assert choose(tmp_path).history == (elsewhere,)


def test_damaged_checkpoints_are_passed_over(tmp_path: Path) -> None:
    whole = commit_step(tmp_path, 10, {})
    for step, name in ((20, "READY"), (30, "manifest.json")):
        (Path(commit_step(tmp_path, step, {})) / name).write_text("")
    choice = choose(tmp_path)
    assert choice.origin == Origin(whole, resumes=True)
    assert sorted(choice.damaged) == [20, 30]
    assert choice.damaged[20] == (
        f"{step_folder(tmp_path, 20)}: damaged: READY has 0 bytes that are no manifest's checksum; "
        "take another checkpoint"
    )
    (Path(whole) / "manifest.json").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"step_00000030: damaged: manifest.json: checksum"):
        choose(tmp_path)


def test_a_checkpoint_of_a_newer_version_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_step(tmp_path, 10, {})
    with monkeypatch.context() as newer:
        newer.setattr("pretrain.checkpoint.manifest._SCHEMA", 3)
        commit_step(tmp_path, 20, {})
    with pytest.raises(InputError, match="schema 3, this program reads 2") as caught:
        choose(tmp_path)
    assert not isinstance(caught.value, DamagedCheckpointError)


def test_only_the_newest_of_several_is_set_aside_and_none_that_was_named(tmp_path: Path) -> None:
    location = CheckpointLocation(tmp_path)
    urls = [commit_step(tmp_path, step, {}) for step in (10, 20)]
    damage = [DamagedCheckpointError(f"{url}: damaged: a file") for url in urls]
    for chosen, error in ((None, damage[0]), (Origin(urls[1], resumes=True, named=True), damage[1])):
        with pytest.raises(DamagedCheckpointError):
            set_aside_newest(location, chosen, error)
    assert set_aside_newest(location, Origin(urls[1], resumes=True), damage[1]) == 20
    assert location.steps() == [10]
    with pytest.raises(DamagedCheckpointError):
        set_aside_newest(location, None, damage[0])
