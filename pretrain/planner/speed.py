"""What one optimiser step communicates and how long it may take: an estimate, not a measurement.

    compute   = FLOPs with recomputation / (efficiency x peak FLOP/s)
    tensor    = bytes of tensor parallelism / bandwidth inside a node; not overlapped
    partition = bytes of ZeRO-3 / bandwidth inside a node, or of the network where the ranks are on several;
                then also the latency of rings: 3 collectives a layer and micro-batch of d - 1 steps each
    host      = bytes of offloading / bandwidth to the host + bytes of the update / bandwidth of its memory
    step      = max(compute, partition) + tensor + host

Bytes sent by one GPU, b = 2 for bf16, P parameters of its tensor-parallel rank, t = tensor, d = data:

    ZeRO-3 a micro-batch   3 P b (d - 1) / d          gathered forward and backward, gradients scattered
    a layer a micro-batch  8 T H b (t - 1) / t        two branches, gather and scatter, forward and backward
                           selective + 2, full + 4    gathered again; whole forward pass repeated

Bytes between a GPU and its host, S = P / d parameters of its share:

    optimizer     2 S b           gradients down, new weights up, once a step; the update on the host reads
                                  and writes 28 bytes a parameter of its memory
    all           + 2 S b a micro-batch   weights up, forward and backward
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.model.config import ModelConfig
from pretrain.planner.flops import Workload
from pretrain.planner.gpus import Machine
from pretrain.planner.memory import ParallelLayout, count_parameters

_BYTES = 2
# Recomputed share of the layers' matrix products (forward 1, backward 2); selective recomputes element-wise
# functions: 6 % of a measured step (docs/measurements.md).
_RECOMPUTED = {"none": 0.0, "selective": 0.06, "full": 1 / 3}
_COLLECTIVES = {"none": 8, "selective": 10, "full": 12}
# A parameter. AdamW: weight, gradient and two moments read, all but the gradient written. Lion, in passes:
# decay 8, direction 12, its sign 8, moment 12, scaled 8, weight 12.
_UPDATE_BYTES = {"adamw": 28, "lion": 60}


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Communication and time of one optimiser step, estimated.

    Attributes:
        partition_bytes: Sent by a GPU for ZeRO-3.
        tensor_bytes: Sent by a GPU for tensor parallelism.
        host_bytes: Between a GPU and its host for offloading.
        seconds: Duration of the step.
        utilisation: Model FLOP/s over the peak (MFU).
        compute: Seconds of computation; part of `seconds`.
        partition: Seconds of ZeRO-3's collectives; overlapped with computation.
        tensor: Seconds of tensor parallelism's collectives; part of `seconds`.
    """

    partition_bytes: float
    tensor_bytes: float
    host_bytes: float
    seconds: float
    utilisation: float
    compute: float
    partition: float
    tensor: float


def estimate_step(
    model: ModelConfig, layout: ParallelLayout, sequence_length: int, share: int, machine: Machine
) -> StepEstimate:
    """Estimate one optimiser step.

    Every position counts as labelled and every sequence as one sample: an upper bound for packed samples.

    Args:
        model: The network.
        layout: Of the ranks.
        sequence_length: Tokens of a sequence.
        share: Sequences of one data-parallel rank in a step.
        machine: The GPUs.
    """
    micro_batches = share // layout.micro_batch
    tokens = share * sequence_length
    parameters = sum(count_parameters(model, layout.tensor))
    sent = (layout.data - 1) / layout.data
    partition_bytes = 3 * parameters * _BYTES * sent * micro_batches
    sent = (layout.tensor - 1) / layout.tensor
    collectives = model.layers * _COLLECTIVES[layout.recompute]
    tensor_bytes = collectives * tokens * model.hidden_size * _BYTES * sent
    pairs = tokens * (sequence_length + 1) // 2
    useful = Workload(tokens, tokens, pairs).flops(model) / layout.tensor
    head = Workload(0, tokens, 0).flops(model) / layout.tensor
    # The loss recomputes its logits in the backward pass, whatever the policy.
    executed = useful + _RECOMPUTED[layout.recompute] * (useful - head) + head / 3
    compute = executed / (machine.efficiency * machine.peak)
    partition = _partition_seconds(layout, partition_bytes, 3 * model.layers * micro_batches, machine)
    tensor = tensor_bytes / machine.node_bandwidth
    host, update = _offload_bytes(layout, parameters / layout.data, micro_batches)
    seconds = max(compute, partition) + tensor
    seconds += host / machine.host_bandwidth + update / machine.host_memory_bandwidth
    utilisation = useful / (seconds * machine.peak)
    return StepEstimate(partition_bytes, tensor_bytes, host, seconds, utilisation, compute, partition, tensor)


def _partition_seconds(layout: ParallelLayout, sent: float, collectives: int, machine: Machine) -> float:
    """Seconds of ZeRO-3's gathers and scatters."""
    if layout.tensor * layout.data <= machine.node_gpus:
        return sent / machine.node_bandwidth
    return sent / machine.network_bandwidth + collectives * (layout.data - 1) * machine.hop


def _offload_bytes(layout: ParallelLayout, share: float, micro_batches: int) -> tuple[float, float]:
    """Bytes between GPU and host in a step, and bytes of host memory read and written by the update."""
    if layout.offload == "none":
        return 0.0, 0.0
    weights = 2 * micro_batches if layout.offload == "all" else 0
    return (2 + weights) * share * _BYTES, _UPDATE_BYTES[layout.optimizer] * share
