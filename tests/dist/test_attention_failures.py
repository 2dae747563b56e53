"""A training whose attention fails in its first pass ends with a line that names it and what to set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.autograd.function import Function

from pretrain.config import TrainingConfig
from pretrain.model.attention.dense import DenseMask
from pretrain.trainer import train
from tests.support import training_case as case
from tests.support.ranks import RankFailedError, run_ranks


class _FailsInBackward(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise NotImplementedError("no such kernel")


def _train(config: TrainingConfig, direction: str) -> None:
    attend = DenseMask.attend

    def failing(self: DenseMask, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if direction == "forward":
            raise NotImplementedError("no such kernel")
        output = _FailsInBackward.apply(attend(self, query, key, value))
        assert isinstance(output, Tensor)
        return output

    DenseMask.attend = failing
    DenseMask.backend = property(lambda self: "flex")  # pyright: ignore[reportAttributeAccessIssue]
    train(config)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_first_pass_that_fails_is_explained(recompute: Any, direction: str, tmp_path: Path) -> None:
    config = case.settings(tmp_path, case.write_dataset(tmp_path / "shards"))
    config.model.recompute = recompute
    line = (
        f"InputError: attention backend flex: its first {direction} pass failed .* no such kernel; set model"
    )
    with pytest.raises(RankFailedError, match=line):
        run_ranks(_train, 1, config, direction)
