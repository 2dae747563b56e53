"""Where a run starts: chosen once, before anything is written."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import InputError
from pretrain.checkpoint.origin import Origin, newest_checkpoint
from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder
from pretrain.run_start import open_run
from pretrain.settings import read_yaml
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
