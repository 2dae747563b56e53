"""Bytes of weights, gradients, optimiser and ZeRO's buffers at each stage, in bf16 with fp32 master weights.

P parameters of a tensor-parallel rank, S = P / data its share; accumulated: of several micro-batches
(`pretrain.parallel.zero` and `pretrain.parallel.replicated` say why):

    stage  weights        gradients                 fp32 weights, moments (Lion)
    0      2 P            4 P                       12 P (8 P)
    1      2 P            2 P, accumulated 6 P      12 S (8 S)
    2      2 P            2 S, accumulated 4 S      12 S (8 S)
    3      2 S, norms 2 P 2 S, accumulated 4 S      12 S (8 S)      hpZ: + 2 P / hpz

An average of the weights (`optim.ema`) adds 4 P at stage 0, else 4 S, where the masters are.

At stage 1 DeepSpeed accumulates with another optimiser than its own of ZeRO: it keeps the bf16 gradients of a
micro-batch beside their fp32 sum, and averages that after the last backward pass, as at stage 0.

Offloaded to host memory:

    optimizer  master weights and moments 12 S (Lion 8 S), gradients 2 S (accumulated: 4 S), once more in
               fp32 4 S; at stage 1 the gradients of the passes stay on the GPU too
    all        also the weights 2 S; a layer's weights are still gathered on the GPU
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.config import OptimizerName
from pretrain.model.config import ModelConfig
from pretrain.planner.buckets import zero_buckets
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.parameters import count_parameters

STEP_GROUP = 1_000_000_000  # DeepSpeed's sub_group_size: parameters of stage 3 updated at a time
REPLICATED_BUCKET = 500_000_000  # fp32 gradients that DeepSpeed averages at a time at stage 0; no setting
# Bytes for each parameter: fp32 master weight and moments, and working memory of the update (fp32 gradient;
# Lion: also its direction and that scaled).
STATE_BYTES: dict[OptimizerName, int] = {"adamw": 12, "lion": 8}
AVERAGE_BYTES = 4  # fp32 average of a weight, updated in its place
STEP_BYTES: dict[OptimizerName, int] = {"adamw": 4, "lion": 12}


@dataclass(frozen=True, slots=True)
class ZeroState:
    """Bytes on one GPU, and in host memory for it; as `pretrain.planner.memory.MemoryEstimate`."""

    weights: float
    gradients: float
    optimiser: float
    update: float
    buffers: float
    host: float = 0.0


def zero_state(model: ModelConfig, layout: ParallelLayout, node_gpus: int) -> ZeroState:
    """State and buffers of one GPU.

    Args:
        model: The network.
        layout: Of the ranks.
        node_gpus: GPUs of one node.
    """
    if layout.zero_stage == 0:
        return _replicated(model, layout)
    matrices, vectors = count_parameters(model, layout.tensor)
    parameters = matrices + vectors
    share = parameters / layout.data
    gradient_bytes, state = (4 if layout.accumulates else 2), _state_bytes(layout)
    weights_on_host, state_on_host = layout.offload == "all", layout.offload != "none"
    whole_gradients, whole_weights = layout.zero_stage == 1, layout.zero_stage < 3
    weights, second = 2 * matrices / layout.data, 0.0
    if layout.hpz > 1:
        second = 2 * matrices / layout.hpz
    gradients = gradient_bytes * share
    if whole_gradients:
        gradients = (6 if layout.accumulates else 2) * parameters
    on_gpu = 2 * parameters if whole_weights else 2 * vectors + (0 if weights_on_host else weights) + second
    step = STEP_BYTES[layout.optimizer] * min(share, STEP_GROUP if layout.zero_stage == 3 else share)
    if whole_gradients and layout.accumulates:
        step = max(step, 4 * min(parameters, REPLICATED_BUCKET))
    return ZeroState(
        weights=on_gpu,
        gradients=gradients if whole_gradients or not state_on_host else 0,
        optimiser=0 if state_on_host else state * share,
        update=0 if state_on_host else step,
        buffers=_buffers(model, layout, node_gpus),
        host=(weights if weights_on_host else 0)
        + ((state + 4 + gradient_bytes) * share if state_on_host else 0),
    )


def _replicated(model: ModelConfig, layout: ParallelLayout) -> ZeroState:
    """Stage 0: nothing is partitioned, and gradients are averaged after the backward pass."""
    parameters = sum(count_parameters(model, layout.tensor))
    largest = _largest(model, layout)
    temporaries = STEP_BYTES[layout.optimizer] - 4  # of one matrix at a time
    return ZeroState(
        weights=2 * parameters,
        gradients=4 * parameters,
        optimiser=_state_bytes(layout) * parameters,
        update=max(4 * min(parameters, REPLICATED_BUCKET), temporaries * largest),
        buffers=2 * largest,  # a matrix's gradient before it is added in fp32
    )


def _state_bytes(layout: ParallelLayout) -> int:
    """Bytes for each parameter of master weight, moments and average."""
    return STATE_BYTES[layout.optimizer] + AVERAGE_BYTES * layout.ema


def _buffers(model: ModelConfig, layout: ParallelLayout, node_gpus: int) -> float:
    """Gradients being reduced, and at stage 3 gathered parameters."""
    matrices, largest = count_parameters(model, layout.tensor)[0], _largest(model, layout)
    buckets = zero_buckets(model, layout.tensor, layout.ranks <= node_gpus)
    flattened = max(largest, buckets.reduce)
    if layout.zero_stage == 1 and layout.accumulates:
        return 0.0
    if layout.zero_stage < 3:
        return 2 * (2 * buckets.reduce + flattened)  # one bucket fills while the other is reduced
    copied = 0 if buckets.sequential else min(matrices, buckets.prefetch + largest)
    return 2 * (min(matrices, buckets.live + largest) + copied + buckets.reduce + flattened)


def _largest(model: ModelConfig, layout: ParallelLayout) -> float:
    """Elements of the largest matrix."""
    return model.vocabulary_size * model.hidden_size / layout.tensor
