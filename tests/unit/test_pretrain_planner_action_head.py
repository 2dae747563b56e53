"""The planner's formulas of the action head against the head itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.model.action_head import ActionHead
from pretrain.model.action_prompts import ActionPrompts
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.model.transformer import expected_shapes
from pretrain.planner.action_head import head_activation_bytes, head_flops, head_parameters
from pretrain.planner.flops import Workload
from pretrain.planner.memory import estimate_memory
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.parameters import count_parameters

SMALL = ModelConfig(vocabulary_size=64, hidden_size=128, ffn_size=64, layers=1, heads=4)
WITH_HEAD = replace(SMALL, action_head=ActionHeadConfig(time_horizon=5))


@pytest.mark.parametrize("horizon", [1, 10])
def test_parameters_are_those_of_the_network(horizon: int) -> None:
    model = replace(SMALL, action_head=ActionHeadConfig(time_horizon=horizon))
    shapes = expected_shapes(model)
    expected = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("action_head."))
    assert head_parameters(model) == expected
    assert sum(count_parameters(model)) == sum(math.prod(shape) for shape in shapes.values())
    assert count_parameters(model, 2)[0] - count_parameters(SMALL, 2)[0] == expected
    assert head_parameters(SMALL) == 0


def test_operations_are_those_that_torch_counts() -> None:
    lengths = np.full(3, 100)
    prompts = ActionPrompts.of(np.cumsum(lengths), lengths, 35, torch.device("cpu"))
    head = ActionHead(WITH_HEAD).eval()
    counted = sdpa_kernel(SDPBackend.MATH)  # torch has no count of its fused attention on the CPU
    with torch.no_grad(), counted, FlopCounterMode(display=False) as counter:
        head(torch.randn(300, 128), prompts)
    assert head_flops(WITH_HEAD, 300, 3) == counter.get_total_flops()
    work = Workload(action_samples=3, prompts=300)
    assert work.flops(WITH_HEAD) == 3 * head_flops(WITH_HEAD, 300, 3)
    assert work.flops(SMALL) == head_flops(WITH_HEAD, 0, 0) == 0


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_those_that_autograd_saves(dropout: float) -> None:
    """Of one long prompt, beside whose rows the queries do not matter."""
    tokens, hidden = 4096, torch.randn(4096, 128, requires_grad=True)
    lengths = np.array([tokens])
    model = replace(SMALL, action_head=ActionHeadConfig(time_horizon=1, dropout=dropout))
    prompts = ActionPrompts.of(lengths, lengths, 7, torch.device("cpu"))
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    head = ActionHead(model).train()
    for layer in head.transformer_encoder.layers:  # with it the CPU keeps whole matrices of probabilities
        layer.self_attn._dropout = 0.0  # pyright: ignore
    own = {each.untyped_storage().data_ptr() for each in (*head.parameters(), hidden)}
    kept = {each.data_ptr() for each in (prompts.tokens, prompts.slots, prompts.valid)}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = head(hidden, prompts)
    measured = sum(size for at, size in saved.items() if at not in own | kept)
    assert result.requires_grad
    expected = head_activation_bytes(model, tokens, value_bytes=4, dropout_bytes=4)
    assert expected == pytest.approx(measured, rel=0.1)


def test_a_head_needs_memory_on_every_tensor_parallel_rank() -> None:
    head = replace(ModelConfig(), action_head=ActionHeadConfig(time_horizon=10))
    for tensor in (1, 8):
        layout = ParallelLayout(tensor, 8, 1, "full")
        plain, more = (estimate_memory(model, layout, 8192) for model in (ModelConfig(), head))
        assert more.weights - plain.weights == pytest.approx(2 * 39_144_455 / 8)
        assert more.activations - plain.activations == pytest.approx(
            8192 * (2 * (4096 + 21 * 1024) + 6 * 1024)
        )
