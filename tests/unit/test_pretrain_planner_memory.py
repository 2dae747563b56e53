"""The planner's formulas against measured bytes of small networks, within 15 %."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.report import peak_memory
from pretrain.model.attention.causal import CausalMask
from pretrain.model.config import RECOMPUTE_POLICIES, ModelConfig, RecomputePolicy
from pretrain.model.factory import LayerFactory
from pretrain.model.loss import LossSettings
from pretrain.model.recompute import recomputed
from pretrain.model.transformer import Decoder, Transformer, expected_shapes
from pretrain.model.vocabulary import CPU_LOGIT_BYTES
from pretrain.planner.memory import (
    Kernels,
    MemoryEstimate,
    activation_bytes,
    estimate_memory,
    layer_activation_bytes,
    layer_bytes,
    loss_bytes,
)
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.parameters import count_parameters
from tests.support.compiling import needs_compiler

CPU = Kernels(value_bytes=4, compiled=False, dropout_bytes=4, logit_bytes=CPU_LOGIT_BYTES)
SMALL = ModelConfig(
    vocabulary_size=1024, hidden_size=128, ffn_size=344, layers=3, heads=4, max_positions=512, dropout=0.0
)
SHARED = replace(SMALL, key_value_heads=1)
SWIN = replace(
    SMALL, swin_norm=True, key_value_heads=2, hidden_size=192, ffn_size=400, dropout=0.1, max_positions=384
)
DEEP = replace(SMALL, layers=6, hidden_size=64, heads=2, ffn_size=256, dropout=0.1)
FEW_IDS = replace(SMALL, vocabulary_size=256, dropout=0.1)  # layers need more than the loss
NETWORKS = pytest.mark.parametrize(
    ("model", "tokens"),
    [(SMALL, 256), (SHARED, 256), (SWIN, 384), (DEEP, 512), (FEW_IDS, 512)],
    ids=["plain", "grouped heads", "34b", "deep", "few ids"],
)
POLICIES = pytest.mark.parametrize("policy", RECOMPUTE_POLICIES)


def forward(model: Transformer, tokens: int) -> Callable[[], Any]:
    """The forward pass with the loss over every token, warmed up."""
    ids, places = torch.zeros(1, tokens, dtype=torch.int64), torch.arange(tokens)
    divisors = torch.full((2,), float(tokens))

    def run() -> Any:
        return model(ids, places[None], CausalMask(), places, ids[0], divisors, LossSettings())[0]

    run()  # tables built on first use are not counted
    return run


def held_bytes(function: Callable[[], Any]) -> int:
    """Bytes that a call allocates and does not release."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = function()
    recorded: Any = profile.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    assert result.requires_grad
    return sum(event.nbytes() for event in events)


@NETWORKS
@POLICIES
def test_saved_activations(model: ModelConfig, tokens: int, policy: RecomputePolicy) -> None:
    network = Transformer(replace(model, recompute=policy)).train()
    measured = held_bytes(forward(network, tokens))
    assert activation_bytes(model, policy, tokens, kernels=CPU) == pytest.approx(measured, rel=0.05)


@NETWORKS
@POLICIES
def test_peak_of_both_passes(model: ModelConfig, tokens: int, policy: RecomputePolicy) -> None:
    network = Transformer(replace(model, recompute=policy)).train()
    for parameter in network.parameters():  # ZeRO releases gradients as they are computed
        parameter.register_post_accumulate_grad_hook(_forget)
    run = forward(network, tokens)
    measured = peak_memory(lambda: run().backward(), "cpu")
    working = max(loss_bytes(model, tokens, kernels=CPU), layer_bytes(model, policy, tokens, kernels=CPU))
    assert activation_bytes(model, policy, tokens, kernels=CPU) + working == pytest.approx(measured, rel=0.15)


def _forget(parameter: nn.Parameter) -> None:
    parameter.grad = None


class _Half(nn.Module):
    """The first half of a layer's output for all tokens: this rank's."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.weight = whole.weight
        self._whole = [whole]

    def forward(self, x: Tensor) -> Tensor:
        return self._whole[0](x)[: len(x) // 2].clone()


def _twice(x: Tensor) -> Tensor:
    return torch.cat([x, x])


class OneOfTwoRanks(LayerFactory):
    """The shapes of one of two tensor- and sequence-parallel ranks, without the other."""

    size = 2

    def embedding(self, rows: int, width: int) -> nn.Module:
        return _Half(super().embedding(rows, width))

    def column(self, inputs: int, outputs: int) -> nn.Module:
        return super().column(inputs, outputs // 2)

    def row(self, inputs: int, outputs: int) -> nn.Module:
        return _Half(super().row(inputs // 2, outputs))

    def columns(self, x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
        return super().columns(recomputed(_twice(x), _twice, x), *layers)

    def gather_tokens(self, x: Tensor) -> Tensor:
        return torch.cat([x, x])


@POLICIES
@pytest.mark.parametrize("model", [SMALL, replace(SWIN, max_positions=256)], ids=["plain", "34b"])
def test_layer_sharded_over_two_ranks(model: ModelConfig, policy: RecomputePolicy) -> None:
    tokens, actual = 256, []
    for layers in (1, 3):
        decoder = Transformer(replace(model, layers=layers, recompute=policy), OneOfTwoRanks()).train().model
        places = torch.arange(tokens)[None]

        def run(decoder: Decoder = decoder, places: Tensor = places) -> Tensor:
            return decoder(places, places, CausalMask())

        run()
        actual.append(held_bytes(run))
    measured = (actual[1] - actual[0]) / 2
    assert layer_activation_bytes(model, policy, tokens, 2, CPU) == pytest.approx(measured, rel=0.15)


@needs_compiler
@POLICIES
@pytest.mark.parametrize("model", [SMALL, replace(SWIN, max_positions=256)], ids=["plain", "34b, dropout"])
def test_saved_activations_of_compiled_functions(model: ModelConfig, policy: RecomputePolicy) -> None:
    """As on a GPU, but in fp32."""
    compiled = Transformer(replace(model, recompute=policy, compile="on")).train()
    measured = held_bytes(forward(compiled, 256))
    expected = activation_bytes(model, policy, 256, kernels=replace(CPU, compiled=True, dropout_bytes=1))
    assert expected == pytest.approx(measured, rel=0.05)


@NETWORKS
def test_parameters_are_those_of_the_network(model: ModelConfig, tokens: int) -> None:
    del tokens
    shapes = expected_shapes(model)
    assert sum(count_parameters(model)) == sum(math.prod(shape) for shape in shapes.values())
    assert count_parameters(model)[0] == sum(math.prod(s) for n, s in shapes.items() if "norm" not in n)


def test_the_published_loss_measurement() -> None:
    """docs/measurements.md: 877 MB at 8,192 tokens x 65,536 ids of 4,096 features in bf16, on the CPU."""
    actual = loss_bytes(ModelConfig(), 8192, kernels=replace(CPU, value_bytes=2))
    assert actual == pytest.approx(877e6, rel=0.15)


def estimate_7b(layout: ParallelLayout) -> MemoryEstimate:
    return estimate_memory(ModelConfig(), layout, 4096)


@POLICIES
def test_more_ranks_need_no_more(policy: RecomputePolicy) -> None:
    by_data = [
        estimate_memory(ModelConfig(), ParallelLayout(1, data, 1, policy), 4096) for data in (1, 2, 8, 64)
    ]
    by_tensor = [
        estimate_memory(ModelConfig(), ParallelLayout(tensor, 8, 1, policy), 4096) for tensor in (1, 2, 4, 8)
    ]
    for series in (by_data, by_tensor):
        totals = [need.total for need in series]
        assert totals == sorted(totals, reverse=True)
        assert totals[0] > totals[-1]


def test_policies_and_accumulation_are_ordered() -> None:
    layers = [layer_activation_bytes(ModelConfig(), policy, 4096) for policy in ("full", "selective", "none")]
    assert layers == sorted(layers)
    plain, several = (
        estimate_memory(ModelConfig(), ParallelLayout(1, 8, 1, "full", more), 4096) for more in (False, True)
    )
    assert several.gradients == 2 * plain.gradients


def test_state_of_7b_is_16_bytes_a_parameter() -> None:
    need = estimate_7b(ParallelLayout(1, 1, 1, "full"))
    assert need.state == pytest.approx(16 * sum(count_parameters(ModelConfig())))
