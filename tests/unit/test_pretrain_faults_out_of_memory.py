"""The message when a GPU's memory is not enough."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from data.errors import InputError
from pretrain.config import OptimizerName, ParallelConfig, TrainerConfig, TrainingConfig
from pretrain.faults.out_of_memory import explained_out_of_memory, layout_advice
from pretrain.model.config import ModelConfig
from pretrain.planner.memory import estimate_memory
from pretrain.planner.parallel_layout import ParallelLayout

H100 = "NVIDIA H100 80GB HBM3"


def _config(ranks: int, optimizer: OptimizerName = "adamw") -> TrainingConfig:
    config = TrainingConfig(
        trainer=TrainerConfig(global_batch=4 * ranks, micro_batch=4),
        parallel=ParallelConfig(tensor=1, data=ranks),
        model=ModelConfig(recompute="none"),
    )
    config.optim.name = optimizer
    return config


def test_fitting_layouts_of_the_same_ranks_are_listed_with_their_memory() -> None:
    message = layout_advice(_config(8), 80e9, H100)
    assert message.startswith(
        "parallel.tensor=1 parallel.data=8 trainer.micro_batch=4 model.recompute=none parallel.zero_stage=3; "
        "by estimate these fit 80 GB, the quickest first: parallel.tensor="
    )
    layouts = re.findall(
        r"parallel.tensor=(\d+) parallel.data=(\d+) trainer.micro_batch=\d+ model.recompute=\w+"
        r" parallel.zero_stage=\d(?: parallel.offload=\w+)? \(([\d.]+) GB\)",
        message,
    )
    assert len(layouts) == 3
    assert all(int(tensor) * int(data) == 8 and float(need) <= 72 for tensor, data, need in layouts)


def test_a_network_that_fits_no_layout_gets_advice_on_what_would_fit() -> None:
    message = layout_advice(_config(2), 2e9, H100)
    assert "nothing fits gpus=2 of 2 GB (1.8 GB without the reserve): the least need is" in message
    assert message.endswith("take a shorter sequence_length or a smaller model, or GPUs of 4 GB")


def test_one_moment_less_leaves_room_for_more_activations() -> None:
    adamw = layout_advice(_config(2), 80e9, H100)
    assert "the quickest first: parallel.tensor=" in adamw
    assert "model.recompute=none" not in adamw.partition(";")[2]
    assert "model.recompute=none" in layout_advice(_config(2, "lion"), 80e9, H100).partition(";")[2]
    layout = ParallelLayout(1, 8, 1, "full")
    both, one = (
        estimate_memory(ModelConfig(), layout, 4096),
        estimate_memory(ModelConfig(), replace(layout, optimizer="lion"), 4096),
    )
    assert one.optimiser == both.optimiser * 2 / 3
    assert (one.weights, one.gradients) == (both.weights, both.gradients)


def test_the_layout_that_ran_out_of_memory_is_not_advised() -> None:
    config = _config(8)
    config.trainer.micro_batch = 2
    before, _, advice = layout_advice(config, 80e9, H100).partition("; by estimate")
    assert "trainer.micro_batch=2 model.recompute=none parallel.zero_stage=3" in before
    assert advice
    assert before not in advice
    config.trainer.micro_batch = 4
    assert before in layout_advice(config, 80e9, H100), "it is advised where another one has failed"


def test_an_unknown_device_gets_the_first_setting_to_lower() -> None:
    with (
        pytest.raises(InputError, match=r"^out of memory on cpu: .*; lower trainer.micro_batch") as raised,
        explained_out_of_memory(_config(8), torch.device("cpu")),
    ):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
    assert "\n" not in str(raised.value)
