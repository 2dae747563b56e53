"""Where a run starts: chosen once, before anything is written."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.errors import InputError
from data.storage.index import DatasetIndex
from data.tokens.text import TextTokenizer, train_text_tokenizer
from pretrain.checkpoint.location import checkpoint_location
from pretrain.checkpoint.origin import HISTORY, Origin, newest_checkpoint
from pretrain.config import TrainingConfig
from pretrain.policy_settings import PolicySettings
from pretrain.run_folder import RunFolder
from pretrain.run_start import ORDER, open_run
from pretrain.settings import read_yaml, to_mapping
from pretrain.sources import libero_source
from tests.support.training_case import write_dataset
from tests.unit.test_pretrain_checkpoint_origin import commit_step

METADATA = {"config": {"run": {"name": "mine"}}, "wandb_run": "abcd1234"}


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    config = TrainingConfig()
    config.run.name, config.run.dir, config.data.url = "mine", str(tmp_path), "unused"
    return config


def test_a_new_run_starts_with_random_weights_and_an_id_of_its_own(config: TrainingConfig) -> None:
    folder = RunFolder.of(config.run)
    start = open_run(config, folder)
    assert (start.origin, start.resumed_from) == (None, None)
    assert start.wandb_run == folder.wandb_run()
    assert read_yaml(folder.config)["run"]["name"] == "mine"
    assert open_run(config, folder) == start


def test_a_resumed_run_takes_over_the_id_of_its_checkpoint(config: TrainingConfig) -> None:
    folder = RunFolder.of(config.run)
    newest = commit_step(folder.checkpoints, 4, METADATA)
    config.checkpointing.url = str(folder.checkpoints)  # as of a run whose folder was lost
    lost = replace(config, run=replace(config.run, dir=f"{config.run.dir}/again"))
    start = open_run(lost, RunFolder.of(lost.run))
    assert start.origin == Origin(newest, resumes=True)
    assert (start.resumed_from, start.wandb_run) == (newest, "abcd1234")
    assert pickle.loads(pickle.dumps(start)) == start, "a command sends it to its ranks"


def test_a_rollback_ignores_where_the_run_started(config: TrainingConfig) -> None:
    folder = RunFolder.of(config.run)
    config.checkpointing.resume = "elsewhere/step_00000008"
    assert newest_checkpoint(config, folder) is None
    own = commit_step(folder.checkpoints, 2, METADATA)
    assert newest_checkpoint(config, folder) == Origin(own, resumes=True)


def test_an_unusable_origin_leaves_no_folder(config: TrainingConfig, tmp_path: Path) -> None:
    config.checkpointing.start_from = str(tmp_path / "gone")
    with pytest.raises(InputError, match="gone: no committed checkpoint"):
        open_run(config, RunFolder.of(config.run))
    assert not RunFolder.of(config.run).path.exists()


def events(folder: RunFolder) -> list[dict[str, Any]]:
    lines = folder.events.read_text().splitlines() if folder.events.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key != "time"} for line in lines]


def test_a_damaged_newest_checkpoint_is_set_aside_before_anything_else_reads_it(
    config: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder.of(config.run)
    open_run(config, folder)
    whole = commit_step(folder.checkpoints, 2, METADATA)
    damaged = Path(commit_step(folder.checkpoints, 4, METADATA))
    (damaged / "READY").write_bytes(b"")
    start = open_run(config, folder)
    assert start.origin == Origin(whole, resumes=True)
    assert {path.name for path in damaged.iterdir()} == {"DAMAGED", "manifest.json"}
    (event,) = events(folder)
    assert (event["event"], event["step"]) == ("checkpoint_set_aside", 4)
    assert "READY has 0 bytes" in event["error"]
    assert "it is set aside, the run goes on from the one before" in caplog.text
    assert open_run(config, folder) == start
    assert len(events(folder)) == 1


def test_a_command_that_is_refused_sets_nothing_aside(config: TrainingConfig) -> None:
    folder = RunFolder.of(config.run)
    open_run(config, folder)
    commit_step(folder.checkpoints, 2, METADATA)
    damaged = Path(commit_step(folder.checkpoints, 4, METADATA))
    (damaged / "READY").write_bytes(b"")
    before = folder.config.read_bytes()
    config.optim.lr = 7.0
    with pytest.raises(InputError, match="other settings"):
        open_run(config, folder)
    assert (damaged / "READY").exists()
    assert folder.config.read_bytes() == before


def test_going_back_keeps_the_later_checkpoints_for_the_user(
    config: TrainingConfig, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder.of(config.run)
    open_run(config, folder)
    urls = [commit_step(folder.checkpoints, step, METADATA) for step in (2, 4, 6)]
    made = ("step_00000002", "step_00000004", "step_00000004-libero_goal", "superseded_1_step_00000004")
    for name in made:
        (folder.evaluations / name).mkdir(parents=True)
    config.checkpointing.resume = urls[0]
    start = open_run(config, folder)
    assert start.origin == Origin(urls[0], resumes=True, named=True)
    assert start.resume_history == (urls[0],)
    location = checkpoint_location(config.checkpointing, folder)
    assert location.steps() == [2]
    assert location.remove_incomplete() == [], "the files stay"
    assert {path.name for path in Path(urls[2]).iterdir()} == {"SUPERSEDED", "manifest.json"}
    assert events(folder) == [{"event": "superseded", "step": 4, "steps": [4, 6], "checkpoint": urls[0]}]
    assert {path.name for path in folder.evaluations.iterdir()} == {
        "step_00000002",
        "superseded_1_step_00000004",
        "superseded_1_step_00000004-libero_goal",
        "superseded_2_step_00000004",
    }
    config.checkpointing.resume = urls[2]
    with pytest.raises(InputError, match="its run went back behind it; to use it, rename SUPERSEDED"):
        open_run(config, folder)
    config.checkpointing.resume = urls[0]
    assert "checkpoints of steps 4, 6 are set aside (READY becomes SUPERSEDED)" in caplog.text
    own = commit_step(folder.checkpoints, 3, {**METADATA, HISTORY: list(start.resume_history)})
    assert open_run(config, folder).origin == Origin(own, resumes=True)
    assert (
        f"checkpointing.resume={urls[0]} held for an earlier start; the run goes on from its own"
        in caplog.text
    )


def test_a_change_of_settings_is_recorded(config: TrainingConfig) -> None:
    folder = RunFolder.of(config.run)
    open_run(config, folder)
    config.trainer.steps, config.run.change = 5000, ["trainer.steps"]
    for _ in range(2):
        open_run(config, folder)
    change = {"trainer.steps": {"before": 1000, "now": 5000}}
    assert events(folder) == [{"event": "settings_changed", "settings": change}], "once"
    assert read_yaml(folder.config)["trainer"]["steps"] == 5000


def test_moved_data_is_compared_before_the_settings_are_replaced(
    config: TrainingConfig, tmp_path: Path
) -> None:
    data, other = write_dataset(tmp_path / "data"), write_dataset(tmp_path / "other", seed=1)
    config.data.url = data
    folder = RunFolder.of(config.run)
    open_run(config, folder)
    commit_step(folder.checkpoints, 2, {**METADATA, "dataset": DatasetIndex.load(data).fingerprint})
    before = folder.config.read_bytes()
    config.data.url = other
    with pytest.raises(InputError, match=r"step_00000002: was trained on the data set \w{12}, .*other is"):
        open_run(config, folder)
    assert folder.config.read_bytes() == before
    config.data.url = str(shutil.move(data, tmp_path / "moved"))
    assert open_run(config, folder).origin is not None
    assert read_yaml(folder.config)["data"]["url"].endswith("moved")


def test_a_full_disk_is_one_line(config: TrainingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunFolder, "wandb_run", full)
    with pytest.raises(InputError, match=r"mine: cannot write the run folder \(No space left on device\)"):
        open_run(config, RunFolder.of(config.run))


@pytest.mark.parametrize("resume", ["auto", "the newest"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "model.layers",
            3,
            r"step_00000004: another network: model.layers.* is not in this model;.*; give the",
        ),
        ("model.norm_eps", 0.5, r"step_00000004: another network: model.norm_eps is .* there, 0.5 here"),
        ("optim.name", "lion", "step_00000004: holds exp_avg_sq, which this optimiser does not have; resume"),
    ],
)
def test_a_change_that_the_checkpoint_does_not_allow_changes_nothing(
    config: TrainingConfig, resume: str, name: str, value: Any, message: str
) -> None:
    folder = RunFolder.of(config.run)
    open_run(config, folder)
    newest = commit_step(folder.checkpoints, 4, {"config": to_mapping(config)})
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    section, key = name.split(".")
    setattr(getattr(config, section), key, value)
    config.run.change = [name]
    config.checkpointing.resume = resume if resume == "auto" else newest
    with pytest.raises(InputError, match=message):
        open_run(config, folder)
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == before


def test_weights_without_moments_are_refused_before_the_folder_is_made(
    config: TrainingConfig, tmp_path: Path
) -> None:
    config.checkpointing.resume = commit_step(tmp_path / "imported", 4, METADATA, states=("master",))
    with pytest.raises(InputError, match="step_00000004: holds weights without moments"):
        open_run(config, RunFolder.of(config.run))
    assert not RunFolder.of(config.run).path.exists()


def test_a_text_tokenizer_that_was_replaced_at_its_path_is_refused(
    config: TrainingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shipped = TextTokenizer.load()
    path = shipped.save(tmp_path / "tokenizers")
    config.data.text_tokenizer = str(path)
    folder = RunFolder.of(config.run)
    open_run(config, folder)
    policy = PolicySettings.of(
        config.data, 32, (libero_source(config.data),), "0" * 64, shipped.sha256
    ).to_json()
    newest = commit_step(folder.checkpoints, 2, {**METADATA, "policy": policy})
    assert open_run(config, folder).resumed_from == newest
    before = folder.config.read_bytes()
    path.write_text(train_text_tokenizer(["lift the cube"]))
    changed = TextTokenizer.load(path).sha256
    with pytest.raises(InputError) as caught:
        open_run(config, folder)
    assert str(caught.value) == (
        f"{newest}: was trained with the text tokenizer {shipped.sha256[:12]}, data.text_tokenizer={path} "
        f"has checksum {changed[:12]}; give that tokenizer, begin a run of another name, or change it for "
        "the rest of this run by run.change='[data.text_tokenizer]'"
    )
    assert folder.config.read_bytes() == before
    config.run.change = ["data.text_tokenizer"]
    assert open_run(config, folder).resumed_from == newest
    assert f"has checksum {changed[:12]}; the run goes on with it, by run.change" in caplog.text
    del config.run.change[:]
    config.checkpointing.start_from, config.run.name = newest, "another"
    assert open_run(config, RunFolder.of(config.run)).resumed_from is None, "only the weights are taken"


def test_another_order_of_the_windows_is_refused_before_the_settings_are_replaced(
    config: TrainingConfig, tmp_path: Path
) -> None:
    """Checkpoints of earlier versions do not name theirs: it was full."""
    config.data.url = write_dataset(tmp_path / "data")
    folder = RunFolder.of(config.run)
    open_run(config, folder)
    trained = {**METADATA, "dataset": DatasetIndex.load(config.data.url).fingerprint}
    commit_step(folder.checkpoints, 2, trained)
    before, local = folder.config.read_bytes(), replace(config, data=replace(config.data, shuffle="local"))
    with pytest.raises(
        InputError, match=r"step_00000002: was trained with its windows in full order, now they"
    ):
        open_run(local, folder)
    assert folder.config.read_bytes() == before
    for same in ("auto", "full"):  # the same for this data set, so no change of the run
        open_run(replace(config, data=replace(config.data, shuffle=same)), folder)
    commit_step(folder.checkpoints, 4, {**trained, ORDER: "local", "config": to_mapping(local)})
    with pytest.raises(
        InputError,
        match=r"step_00000004: was trained .* in local order, .*full order; set data\.shuffle=local,",
    ):
        open_run(config, folder)
    assert open_run(local, folder).origin is not None
