"""The planner's ZeRO stages, hpZ, buckets, and what bounds a step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pretrain.model.config import ModelConfig
from pretrain.planner.buckets import LEAST_BUCKET, LEAST_LIVE, MOST_BUCKET, zero_buckets
from pretrain.planner.gpus import FALLBACK_GPU, Machine
from pretrain.planner.layouts import LayoutRequest, estimate_layouts, feasible_layouts
from pretrain.planner.memory import estimate_memory
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.parameters import count_parameters
from pretrain.planner.speed import StepEstimate, estimate_step
from pretrain.planner.zero_traffic import zero_traffic
from pretrain.settings import named_models

H100 = Machine.of_gpu("H100", efficiency=0.45, node_gpus=8)
MODELS = named_models()
SEVEN = sum(count_parameters(ModelConfig()))
LENGTH = 8192


def layout(data: int = 8, **changes: Any) -> ParallelLayout:
    return replace(ParallelLayout(1, data, 1, "none"), **changes)


def step(
    share: int = 1, machine: Machine = H100, model: ModelConfig | None = None, **changes: Any
) -> StepEstimate:
    return estimate_step(model or ModelConfig(), layout(**changes), LENGTH, share, machine)


def best(model: str, gpus: int, global_batch: int, memory: float = 80e9) -> ParallelLayout:
    """The planner's first layout."""
    batches = (1, 2, 4, 8)
    request = LayoutRequest(MODELS[model], gpus, memory, 0.1, LENGTH, batches, global_batch, H100, ("none",))
    return feasible_layouts(request)[0].layout


# Of 7 B: 2 + 12 bytes a parameter, and gradients of 2, or 4 where several are summed (stage 1: 2 + 4).
@pytest.mark.parametrize(
    ("stage", "accumulates", "whole", "shared"),
    [
        (0, False, 2 + 4 + 12, 0),
        (0, True, 2 + 4 + 12, 0),
        (1, False, 2 + 2, 12),
        (1, True, 2 + 6, 12),
        (2, False, 2, 2 + 12),
        (2, True, 2, 4 + 12),
        (3, False, 0, 2 + 2 + 12),
        (3, True, 0, 2 + 4 + 12),
    ],
)
def test_state_of_each_stage(stage: Any, accumulates: bool, whole: int, shared: int) -> None:
    need = estimate_memory(ModelConfig(), layout(zero_stage=stage, accumulates=accumulates), LENGTH)
    assert need.state == pytest.approx((whole + shared / 8) * SEVEN, rel=0.001)


@pytest.mark.parametrize(("stage", "share"), [(0, 1), (1, 8), (2, 8), (3, 8)])
def test_average_of_the_weights_takes_four_bytes_where_the_masters_are(stage: Any, share: int) -> None:
    plain, more = (
        estimate_memory(ModelConfig(), layout(zero_stage=stage, ema=ema), LENGTH) for ema in (False, True)
    )
    assert more.optimiser - plain.optimiser == pytest.approx(4 * SEVEN / share, rel=1e-6)
    assert more.state - plain.state == pytest.approx(4 * SEVEN / share, rel=1e-6)
    assert more.host == plain.host == 0


def test_offloaded_average_is_on_the_host() -> None:
    plain, more = (
        estimate_memory(ModelConfig(), layout(offload="optimizer", ema=ema), LENGTH) for ema in (False, True)
    )
    assert more.host - plain.host == pytest.approx(4 * SEVEN / 8, rel=1e-6)
    assert more.total == plain.total
    quick, slow = (step(offload="optimizer", ema=ema) for ema in (False, True))
    assert slow.offload > quick.offload


def test_planner_counts_the_average_of_its_request() -> None:
    request = LayoutRequest(MODELS["7b"], 8, 80e9, 0.1, LENGTH, (1,), 32, H100, ("none",))
    totals = [estimate.memory.total for estimate in estimate_layouts(request)]
    more = [estimate.memory.total for estimate in estimate_layouts(replace(request, ema=True))]
    assert all(b > a for a, b in zip(totals, more, strict=True))


def test_hpz_holds_a_second_copy() -> None:
    plain, second = (
        estimate_memory(ModelConfig(), layout(64, hpz=size), LENGTH, node_gpus=8) for size in (1, 8)
    )
    assert second.weights - plain.weights == pytest.approx(2 * SEVEN / 8, rel=0.001)
    assert second.total - second.weights == plain.total - plain.weights


def test_buckets_are_about_a_layer() -> None:
    layer = ModelConfig().layer_matrices
    across = zero_buckets(ModelConfig(), 1, one_node=False)
    assert across.reduce == across.prefetch == layer == 202_375_168
    assert across.live == LEAST_LIVE > 3 * layer
    assert not across.sequential
    assert zero_buckets(ModelConfig(), 2, one_node=False).reduce == layer // 2
    inside = zero_buckets(ModelConfig(), 1, one_node=True)
    assert (inside.reduce, inside.prefetch, inside.sequential) == (layer, 1, True)


def test_buckets_of_small_and_large_networks() -> None:
    tiny = zero_buckets(MODELS["tiny"], 1, one_node=True)
    assert tiny.reduce == tiny.live == sum(count_parameters(MODELS["tiny"])) < 7e6, "no more than it has"
    assert zero_buckets(MODELS["300m"], 1, one_node=False).reduce == LEAST_BUCKET
    large = zero_buckets(MODELS["34b"], 1, one_node=False)
    assert large.reduce == MOST_BUCKET < MODELS["34b"].layer_matrices
    assert large.live == 3 * MODELS["34b"].layer_matrices


def test_one_node_needs_no_common_buffer_for_gathers() -> None:
    need = {n: estimate_memory(ModelConfig(), layout(8), LENGTH, node_gpus=n).buffers for n in (8, 4)}
    embedding = 65_536 * 4096
    assert need[4] - need[8] == 2 * (ModelConfig().layer_matrices + embedding)


def test_bytes_sent_by_each_stage() -> None:
    """Of 8 ranks in 4 micro-batches: fp32 gradients once, or bf16 weights and gradients each time."""
    sent = {
        stage: zero_traffic(ModelConfig(), layout(zero_stage=stage, accumulates=True), 4, H100).bytes
        for stage in (0, 1, 2, 3)
    }
    in_all = SEVEN * 7 / 8
    assert sent[0] == pytest.approx(8 * in_all)
    assert sent[1] == pytest.approx((8 + 2) * in_all)
    single = zero_traffic(ModelConfig(), layout(zero_stage=1), 1, H100)
    assert (single.hidden_once, single.exposed_bytes) == pytest.approx((4 * in_all, 2 * in_all))
    assert sent[2] == pytest.approx((4 * 4 + 2) * in_all)
    assert sent[3] == pytest.approx(4 * (3 * 2 * SEVEN - 2 * LEAST_LIVE / 2) * 7 / 8)


def test_hpz_gathers_over_the_network_once_a_step() -> None:
    plain, second = (zero_traffic(ModelConfig(), layout(64, hpz=size), 8, H100) for size in (1, 8))
    assert plain.node_bytes == 0
    assert second.network_bytes == pytest.approx((1 + 8) * 2 * SEVEN * 63 / 64), "one gather, eight scatters"
    assert second.node_bytes == pytest.approx((15 * 2 * SEVEN - 8 * LEAST_LIVE) * 7 / 8)
    assert second.latency == pytest.approx(plain.latency * 9 / 24)


def test_stages_without_overlap_expose_what_they_send() -> None:
    slow = replace(H100, node_bandwidth=1e9)
    none, optimiser, everything = (step(zero_stage=stage, machine=slow) for stage in (0, 1, 3))
    assert none.partition == optimiser.partition == 0
    assert none.exposed == pytest.approx(8 * SEVEN * 7 / 8 / 1e9)
    hidden = 2 / 3 * optimiser.compute
    assert optimiser.exposed == pytest.approx((4 + 2) * SEVEN * 7 / 8 / 1e9 - hidden)
    assert everything.exposed == 0
    assert everything.partition > everything.compute


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": 8}, "compute"),
        ({"data": 64, "machine": replace(H100, network_bandwidth=1e9)}, "ZeRO-network"),
        ({"data": 8, "machine": replace(H100, node_bandwidth=1e9)}, "ZeRO-in-node"),
        ({"data": 64, "machine": replace(H100, hop=1e-2)}, "ring-latency"),
        ({"data": 8, "machine": replace(H100, hooks=1.0)}, "launches"),
        ({"data": 8, "offload": "all", "machine": replace(H100, host_bandwidth=1e9)}, "offload"),
        ({"data": 1, "tensor": 8, "machine": replace(H100, node_bandwidth=1e9)}, "tensor-parallel"),
        ({"data": 64, "zero_stage": 0, "machine": replace(H100, network_bandwidth=1e9)}, "ZeRO-network"),
    ],
)
def test_what_bounds_a_step(changes: dict[str, Any], expected: str) -> None:
    assert step(**changes).bound == expected


def test_hooks_are_of_stage_3_alone() -> None:
    small = MODELS["300m"]
    launches = {stage: step(model=small, zero_stage=stage).launches for stage in (0, 1, 3)}
    assert launches[0] == launches[1] == pytest.approx(19 * H100.launch)
    assert launches[3] == pytest.approx(19 * (H100.launch + H100.hooks))
    assert step(model=small, recompute="full").launches == pytest.approx(launches[3] * 4 / 3)


def test_layouts_that_the_arithmetic_favours() -> None:
    """A micro-batch of 8,192 tokens moves 41 GB on 64 GPUs: hpZ keeps most of it inside the node."""
    assert best("7b", 8, 8) == layout(8)
    assert best("7b", 8, 512) == layout(8, accumulates=True), "stage 2 would be 1 % quicker, at the edge"
    assert best("7b", 64, 512) == layout(64, accumulates=True, hpz=8)
    assert best("7b", 512, 512) == layout(512, hpz=8)
    assert best("1b", 8, 64).zero_stage == 2, "weights fit whole: no hooks"
    assert best("300m", 8, 64).zero_stage == 1


def test_layouts_offload_at_stage_3_and_have_hpz_across_nodes_without_tensor_parallel() -> None:
    request = LayoutRequest(ModelConfig(), 16, 80e9, 0.1, LENGTH, (1,), 16, H100)
    for plan in estimate_layouts(request):
        found = plan.layout
        assert found.offload == "none" or (found.zero_stage, found.hpz) == (3, 1)
        assert found.hpz == 1 or (found.hpz, found.tensor, found.zero_stage) == (8, 1, 3)
    assert {plan.layout.hpz for plan in estimate_layouts(request)} == {1, 8}
    assert {p.layout.hpz for p in estimate_layouts(replace(request, gpus=8, global_batch=8))} == {1}


def test_a_device_without_a_data_sheet_counts_as_the_fallback() -> None:
    assert Machine.of_device("Unknown 9000", 4) == Machine.of_gpu(FALLBACK_GPU, 0.45, 4)
    assert Machine.of_device("NVIDIA A100-SXM4-80GB", 8).peak == 312e12
