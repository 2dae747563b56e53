"""Starts of one run without a command that supervises it: where it goes on, and that one at a time trains."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from data.errors import InputError, StorageError
from pretrain.checkpoint.load import load_metadata
from pretrain.checkpoint.ready import DamagedCheckpointError
from pretrain.config import TrainingConfig
from pretrain.rank_zero import run_on_rank_zero
from pretrain.run_folder import RunFolder
from pretrain.run_lock import exclusive_access
from tests.support import training_case as case
from tests.support.ranks import run_ranks

LAYOUT = (1, 2, 3)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return case.write_dataset(tmp_path_factory.mktemp("shards"))


def until(config: TrainingConfig, step: int) -> RunFolder:
    """Train to a step in one start."""
    return case.train(replace(config, trainer=replace(config.trainer, stop_after=step)))


def events(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.events.read_text().splitlines()]


def resumed(folder: RunFolder) -> list[int]:
    return [event["step"] for event in events(folder) if event["event"] == "resumed"]


def test_a_named_checkpoint_and_none_hold_for_the_first_start(url: str, tmp_path: Path) -> None:
    first = case.settings(tmp_path, url, LAYOUT)
    first.checkpointing.resume = "none"
    folder = until(first, 4)
    until(first, 5)
    assert resumed(folder) == [4]
    back = case.settings(tmp_path, url, LAYOUT)
    back.checkpointing.resume = str(folder.checkpoints / "step_00000002")
    until(back, 3)
    for step in (4, 5):
        until(back, step)
    case.train(first)
    assert resumed(folder) == [4, 2, 3, 4, 5]
    whole = until(case.settings(tmp_path / "whole", url, LAYOUT), 6)
    losses = [record["loss"] for record in case.measured(folder)]
    assert losses == [record["loss"] for record in case.measured(whole)], "bit for bit"
    history = load_metadata(folder.checkpoints / "step_00000006")["resume_history"]
    assert history == ["none", back.checkpointing.resume]


def test_a_run_goes_on_from_another_at_a_url_of_its_own(url: str, tmp_path: Path) -> None:
    other = until(case.settings(tmp_path / "other", url, LAYOUT), 2)
    config = case.settings(tmp_path, url, LAYOUT)
    config.checkpointing.resume = str(other.checkpoints / "step_00000002")
    config.checkpointing.url = (tmp_path / "place").as_uri()
    folder = until(config, 4)
    lost = replace(config, run=replace(config.run, dir=str(tmp_path / "again")))  # only the URL is left
    assert resumed(until(lost, 5)) == [4]
    assert resumed(folder) == [2]


def test_more_steps_and_another_learning_rate_by_name(url: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, url, LAYOUT)
    config.trainer.steps = 3
    folder = case.train(config)
    config.trainer.steps, config.optim.lr = 5, 0.02
    assert "run.change='[optim.lr,trainer.steps]'" in run_ranks(case.try_train, 2, config)[0]
    config.run.change = ["optim.lr", "trainer.steps"]
    case.train(config)
    assert [record["step"] for record in case.measured(folder)] == [1, 2, 3, 4, 5]
    assert resumed(folder) == [3]
    (change,) = (event for event in events(folder) if event["event"] == "settings_changed")
    assert change["settings"]["trainer.steps"] == {"before": 3, "now": 5}


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("READY", lambda file: file.write_bytes(b"")),
        ("manifest-*.json", _cut),
        ("pieces-*.safetensors", Path.unlink),
        ("rank_00001-*.safetensors", _cut),
    ],
)
def test_a_damaged_newest_checkpoint_is_set_aside(
    url: str, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    config = case.settings(tmp_path, url, LAYOUT)
    folder = until(config, 4)
    checkpoint = folder.checkpoints / "step_00000004"
    (file,) = checkpoint.glob(name)
    damage(file)
    until(config, 5)
    assert resumed(folder) == [2]
    (event,) = (event for event in events(folder) if event["event"] == "checkpoint_set_aside")
    assert event["step"] == 4
    assert file.name in event["error"]
    assert [record["step"] for record in case.measured(folder)] == [1, 2, 3, 4, 5]


def test_a_second_start_in_a_folder_is_refused_and_changes_nothing(
    url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = case.settings(tmp_path, url, (1, 2, 1))
    config.trainer.stop_after = 1
    folder = case.train(config)
    config.trainer.stop_after, config.checkpointing.every = 2, 7
    with exclusive_access(folder):
        folder.stop_request.touch()  # of the command that holds the folder
        before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        assert run_ranks(case.run_main, 2, case.overrides(config)) == [2, 2]
        assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before
    refusal = f"error: {folder.path}: another command is training in this folder (process {os.getpid()} on"
    assert refusal in capfd.readouterr().err
    assert run_ranks(case.run_main, 2, case.overrides(config)) == [0, 0]
    assert folder.read_summary()["steps"] == 2


def test_the_display_shows_nothing_of_another_commands_run(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = case.settings(tmp_path, url)
    config.trainer.stop_after = 1
    folder = case.train(config)
    config.trainer.stop_after = 2
    with exclusive_access(folder):
        assert run_ranks(_refused_while_another_writes, 1, case.overrides(config), folder.metrics) == [2]
    assert list(folder.wandb.iterdir()) == [folder.wandb_run_id]


def _refused_while_another_writes(overrides: list[str], metrics: Path) -> int:
    from pretrain import main

    begin = main.Display.__enter__

    def enter(self: main.Display) -> main.Display:
        with metrics.open("a") as file:
            file.write(json.dumps({"event": "resumed", "step": 1}) + "\n")
        return begin(self)

    main.Display.__enter__ = enter  # type: ignore[method-assign]
    return case.run_main(overrides)


def _kind_raised(kind: type[InputError]) -> tuple[str, str]:
    def refuse() -> None:
        raise kind("what was found")

    dist.init_process_group("gloo")
    try:
        run_on_rank_zero(refuse)
    except InputError as error:
        return type(error).__name__, str(error)
    return "no error", ""


@pytest.mark.parametrize("kind", [InputError, DamagedCheckpointError, StorageError])
def test_an_error_of_rank_0_has_its_class_on_every_rank(kind: type[InputError]) -> None:
    assert run_ranks(_kind_raised, 2, kind) == [(kind.__name__, "what was found")] * 2
