"""What the supervisor refuses before a run folder is made or a process started."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from cluster.config import RootConfig
from cluster.run.supervisor import supervise
from data.errors import InputError
from pretrain.config import TrainingConfig


def never(config: TrainingConfig | RootConfig, *rest: object) -> None:
    raise AssertionError("nothing may start")


def test_weights_that_cannot_be_used_leave_the_run_name_free(tmp_path: Path) -> None:
    config = RootConfig()
    config.run.name, config.run.dir = "mine", str(tmp_path / "runs")
    config.eval.every = 0
    config.checkpointing.start_from = str(tmp_path / "gone")
    with pytest.raises(InputError, match="gone: no committed checkpoint"):
        supervise(config, Console(), never, never)  # type: ignore[arg-type]
    assert not (tmp_path / "runs").exists()
