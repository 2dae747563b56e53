"""The allocator of GPU memory is set for torch before CUDA starts, and never over a user's own choice."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.run import worker_entry_points
from pretrain import main, trainer
from pretrain.allocator import VARIABLES, configure_allocator
from pretrain.config import RunConfig, TrainerConfig, TrainingConfig


def test_expandable_segments_are_the_default() -> None:
    environment: dict[str, str] = {}
    configure_allocator(TrainerConfig().allocator, environment)
    assert environment == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize("name", VARIABLES)
def test_a_users_own_setting_stays(name: str) -> None:
    environment = {name: "max_split_size_mb:512"}
    configure_allocator("expandable_segments", environment)
    assert environment == {name: "max_split_size_mb:512"}


def test_torchs_default_sets_nothing() -> None:
    environment: dict[str, str] = {}
    configure_allocator("default", environment)
    assert environment == {}


def test_torch_reads_it_after_it_was_imported() -> None:
    """Allocators read the variable when they are first used; so does this accessor, without a GPU."""
    program = (
        "import os, torch\n"
        "from pretrain.allocator import configure_allocator\n"
        "configure_allocator('expandable_segments', os.environ)\n"
        "print(torch._C._accelerator_getAllocatorSettings())"
    )
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "expandable_segments:True"


@pytest.mark.parametrize("entry", ["ray", "torchrun"])
def test_ranks_set_it_before_they_train(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    seen: list[str | None] = []

    def train(config: TrainingConfig, *_: Any, hooks: Sequence[Any] = ()) -> None:
        seen.append(os.environ.get(VARIABLES[0]))

    monkeypatch.setattr(trainer, "train", train)
    config = TrainingConfig(run=RunConfig("r"))
    monkeypatch.setenv(VARIABLES[0], "")  # so that it is restored
    if entry == "ray":
        start: Any = None
        worker_entry_points.train_rank(config, start)
    else:
        import torch.distributed as dist

        monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
        main._run(config, rank=1)  # pyright: ignore[reportPrivateUsage]
    assert seen == ["expandable_segments:True"]
