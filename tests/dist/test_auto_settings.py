"""`auto` on several ranks: one choice for all of them, recorded, and changed between starts of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from pretrain import auto_settings
from pretrain.auto_settings import AutoChoice, GpuFacts, least_of_ranks, resolve_on_ranks
from pretrain.checkpoint.load import load_metadata
from pretrain.config import ParallelConfig, TrainerConfig, TrainingConfig
from pretrain.model.config import ModelConfig
from pretrain.parallel.groups import ProcessGroups
from pretrain.parallel.mesh import Mesh
from pretrain.settings import read_yaml
from tests.support import training_case as case
from tests.support.ranks import run_ranks


def resolve_with_facts_of_each_rank() -> tuple[AutoChoice | None, TrainingConfig, int]:
    """Rank 0 sees a large GPU, rank 1 a small one."""
    groups = ProcessGroups.create(Mesh(1, 2))
    facts = GpuFacts("NVIDIA H100", (141e9, 1e9)[groups.rank], 2)
    auto_settings._gpu_facts = lambda _: facts  # pyright: ignore[reportPrivateUsage]
    config = TrainingConfig(
        trainer=TrainerConfig(global_batch=2, sequence_length=4096),
        parallel=ParallelConfig(1, 2, "auto"),
        model=ModelConfig(layers=4, recompute="auto"),
    )
    resolved, choice = resolve_on_ranks(config, groups)
    return choice, resolved, least_of_ranks(7 - dist.get_rank(), torch.device("cpu"))


def test_every_rank_has_the_choice_of_rank_0() -> None:
    (choice, resolved, least), other = run_ranks(resolve_with_facts_of_each_rank, 2)
    assert other == (choice, resolved, least)
    assert choice is not None
    assert choice.usable == pytest.approx(0.9 * 141e9)
    assert (resolved.model.recompute, resolved.parallel.zero_stage) == (choice.recompute, choice.zero_stage)
    assert choice.recompute == "none"
    assert least == 6


def test_a_run_records_its_choice_and_goes_on_with_another(tmp_path: Path) -> None:
    url = case.write_dataset(tmp_path / "shards")
    whole = case.train(case.settings(tmp_path / "whole", url, (1, 2, 1)))
    config = case.settings(tmp_path / "auto", url, (1, 2, 1))
    config.parallel.zero_stage, config.model.recompute, config.trainer.stop_after = "auto", "auto", 2
    folder = case.train(config)
    assert read_yaml(folder.config)["parallel"]["zero_stage"] == "auto", "as it was asked for"
    (event,) = [record for record in _events(folder.events) if record["event"] == "auto_settings"]
    del event["time"]
    assert event == {"event": "auto_settings", "recompute": "none", "zero_stage": 0, "step": 0}, (
        "no bytes of CPUs"
    )
    stored = load_metadata(folder.checkpoints / "step_00000002")["config"]
    assert (stored["model"]["recompute"], stored["parallel"]["zero_stage"]) == ("none", 0)
    assert folder.read_summary()["parallel"]["zero_stage"] == 0
    config.parallel.zero_stage, config.model.recompute, config.trainer.stop_after = 3, "full", 4
    case.train(config)
    (resumed,) = [record for record in _events(folder.events) if record["event"] == "resumed"]
    assert resumed["recompute"] == folder.read_summary()["recompute"] == "full"
    config.parallel.zero_stage, config.model.recompute, config.trainer.stop_after = "auto", "selective", None
    case.train(config)
    numbers = [[record["loss"] for record in case.measured(run)] for run in (folder, whole)]
    np.testing.assert_allclose(numbers[0], numbers[1], atol=1e-5)
    assert len(numbers[0]) == 6


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
