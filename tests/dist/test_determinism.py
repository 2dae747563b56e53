"""Every operation of a training runs with `trainer.deterministic`, and two runs write the same bits."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pretrain.config import TrainingConfig
from pretrain.hooks import StepHook
from pretrain.model.config import ActionHeadConfig
from pretrain.trainer import train
from tests.support import training_case as case
from tests.support.ranks import run_ranks


class _Observed(StepHook):
    """What the rank has set, at the last step."""

    settings: tuple[bool, str | None] | None = None

    def after_step(self, step: int) -> None:
        self.settings = (
            torch.are_deterministic_algorithms_enabled(),
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )


def _train(config: TrainingConfig) -> tuple[bool, str | None] | None:
    observed = _Observed()
    train(config, hooks=[observed])
    return observed.settings


@pytest.mark.parametrize("layout", [(1, 2, 3), (2, 1, 1)])
def test_a_deterministic_training_repeats_bit_for_bit(layout: tuple[int, int, int], tmp_path: Path) -> None:
    url = case.write_dataset(tmp_path / "shards")
    written: list[list[bytes]] = []
    for name in ("one", "two"):
        config = case.settings(tmp_path / name, url, layout)
        config.trainer.deterministic, config.trainer.steps = True, 3
        config.model.dropout, config.model.recompute = 0.1, "selective"
        config.model.action_head = ActionHeadConfig(time_horizon=3)
        settings = run_ranks(_train, layout[0] * layout[1], config)
        assert settings == [(True, ":4096:8")] * (layout[0] * layout[1])
        folder = Path(config.run.dir) / "run/checkpoints/step_00000003"
        written.append(sorted(path.read_bytes() for path in folder.rglob("*.safetensors")))
        assert sum(map(len, written[-1])) > 12 * 500_000  # fp32 weights and two moments
    assert written[0] == written[1]


def test_it_is_off_by_default(tmp_path: Path) -> None:
    config = case.settings(tmp_path, case.write_dataset(tmp_path / "shards"))
    config.trainer.steps = 1
    assert run_ranks(_train, 1, config) == [(False, None)]
