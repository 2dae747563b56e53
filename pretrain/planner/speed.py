"""What one optimiser step communicates and how long it may take: an estimate, not a measurement.

    compute   = FLOPs with recomputation / (efficiency x peak FLOP/s)
    launches  = seconds in which the host starts kernels, and at stage 3 runs hooks around each module
    partition = ZeRO's bytes beside computation / bandwidth, and latency (`pretrain.planner.zero_traffic`)
    exposed   = ZeRO's bytes beside nothing / bandwidth
    tensor    = bytes of tensor parallelism / bandwidth inside a node; not overlapped
    host      = bytes of offloading / bandwidth to the host + bytes of the update / bandwidth of its memory
    step      = max(compute, launches, partition) + contention x the other two + exposed + tensor + host

Bytes of tensor parallelism sent by one GPU, b = 2 for bf16, t = tensor:

    a layer a micro-batch  8 T H b (t - 1) / t        two branches, gather and scatter, forward and backward
                           selective + 2, full + 4    gathered again; whole forward pass repeated

Bytes between a GPU and its host, S = P / d parameters of its share:

    optimizer     2 S b           gradients down, new weights up, once a step; the update on the host reads
                                  and writes 28 bytes a parameter of its memory
    all           + 2 S b a micro-batch   weights up, forward and backward
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pretrain.model.config import ModelConfig
from pretrain.planner.flops import Workload
from pretrain.planner.gpus import Machine
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.parameters import count_parameters
from pretrain.planner.zero_traffic import ZeroTraffic, zero_traffic

Bound = Literal[
    "compute", "launches", "ZeRO-in-node", "ZeRO-network", "ring-latency", "tensor-parallel", "offload"
]
"""What takes the largest part of a step."""

_BYTES = 2
# Recomputed share of the layers' matrix products (forward 1, backward 2); selective recomputes element-wise
# functions: 6 % of a measured step (docs/measurements.md).
_RECOMPUTED = {"none": 0.0, "selective": 0.06, "full": 1 / 3}
_COLLECTIVES = {"none": 8, "selective": 10, "full": 12}
# A parameter. AdamW: weight, gradient and two moments read, all but the gradient written. Lion, in passes:
# decay 8, direction 12, its sign 8, moment 12, scaled 8, weight 12.
_UPDATE_BYTES = {"adamw": 28, "lion": 60}
_AVERAGE_BYTES = 12  # weight and average read, average written
_BACKWARD = 2 / 3  # share of a micro-batch's computation


@dataclass(frozen=True, slots=True)
class StepEstimate:
    """Communication and time of one optimiser step, estimated.

    Attributes:
        partition_bytes: Sent by a GPU for ZeRO.
        tensor_bytes: Sent by a GPU for tensor parallelism.
        host_bytes: Between a GPU and its host for offloading.
        seconds: Duration of the step.
        utilisation: Model FLOP/s over the peak (MFU).
        compute: Seconds of computation; part of `seconds`.
        partition: Seconds of ZeRO's collectives that overlap with computation.
        exposed: Seconds of those that do not; part of `seconds`.
        tensor: Seconds of tensor parallelism's collectives; part of `seconds`.
        offload: Seconds of offloading; part of `seconds`.
        launches: Seconds in which the host starts kernels; overlapped with computation.
        bound: What takes the largest part.
    """

    partition_bytes: float
    tensor_bytes: float
    host_bytes: float
    seconds: float
    utilisation: float
    compute: float
    partition: float
    exposed: float
    tensor: float
    offload: float
    launches: float
    bound: Bound


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
    pairs = tokens * (sequence_length + 1) // 2
    useful = Workload(tokens, tokens, pairs).flops(model) / layout.tensor
    head = Workload(0, tokens, 0).flops(model) / layout.tensor
    # The loss recomputes its logits in the backward pass, whatever the policy.
    executed = useful + _RECOMPUTED[layout.recompute] * (useful - head) + head / 3
    compute = executed / (machine.efficiency * machine.peak)
    launches = _launch_seconds(model, layout, micro_batches, machine)
    traffic = zero_traffic(model, layout, micro_batches, machine)
    partition = _partition_seconds(traffic, machine)
    beside, exposed = sum(partition.values()), _exposed_seconds(traffic, compute / micro_batches, machine)
    tensor_bytes = _tensor_bytes(model, layout, tokens)
    tensor = tensor_bytes / machine.node_bandwidth
    share_size = sum(count_parameters(model, layout.tensor)) / layout.data
    host, update = _offload_bytes(layout, share_size, micro_batches)
    offload = host / machine.host_bandwidth + update / machine.host_memory_bandwidth
    longest = max(compute, launches, beside)
    seconds = longest + machine.contention * (compute + launches + beside - longest)
    seconds += exposed + tensor + offload
    # Of what runs side by side only what takes longest bounds the step.
    overlapped: dict[Bound, float] = {"compute": compute, "launches": launches}
    parts = dict(partition) if beside > max(overlapped.values()) else overlapped
    parts |= {"tensor-parallel": tensor, "offload": offload}
    where: Bound = "ZeRO-network" if traffic.crosses_nodes else "ZeRO-in-node"
    parts[where] = parts.get(where, 0.0) + exposed
    return StepEstimate(
        partition_bytes=traffic.bytes,
        tensor_bytes=tensor_bytes,
        host_bytes=host,
        seconds=seconds,
        utilisation=useful / (seconds * machine.peak),
        compute=compute,
        partition=beside,
        exposed=exposed,
        tensor=tensor,
        offload=offload,
        launches=launches,
        bound=max(parts, key=lambda name: parts[name]),
    )


def _launch_seconds(
    model: ModelConfig, layout: ParallelLayout, micro_batches: int, machine: Machine
) -> float:
    """Seconds in which one rank's Python starts the kernels of a step, and runs ZeRO-3's hooks."""
    layer = machine.launch + (machine.hooks if layout.zero_stage == 3 else 0.0)
    forward_again = 1 + (1 / 3 if layout.recompute == "full" else 0)
    return micro_batches * model.layers * layer * forward_again


def _partition_seconds(traffic: ZeroTraffic, machine: Machine) -> dict[Bound, float]:
    """Seconds of ZeRO's collectives that run beside computation."""
    return {
        "ZeRO-in-node": traffic.node_bytes / machine.node_bandwidth,
        "ZeRO-network": traffic.network_bytes / machine.network_bandwidth,
        "ring-latency": traffic.latency,
    }


def _exposed_seconds(traffic: ZeroTraffic, micro_batch: float, machine: Machine) -> float:
    """Seconds of ZeRO's collectives that only the last backward pass, or nothing, hides."""
    bandwidth = machine.network_bandwidth if traffic.crosses_nodes else machine.node_bandwidth
    hidden = max(0.0, traffic.hidden_once / bandwidth - _BACKWARD * micro_batch)
    return hidden + traffic.exposed_bytes / bandwidth


def _tensor_bytes(model: ModelConfig, layout: ParallelLayout, tokens: int) -> float:
    """Bytes that one GPU sends for tensor parallelism."""
    sent = (layout.tensor - 1) / layout.tensor
    return model.layers * _COLLECTIVES[layout.recompute] * tokens * model.hidden_size * _BYTES * sent


def _offload_bytes(layout: ParallelLayout, share: float, micro_batches: int) -> tuple[float, float]:
    """Bytes between GPU and host in a step, and bytes of host memory read and written by the update."""
    if layout.offload == "none":
        return 0.0, 0.0
    weights = 2 * micro_batches if layout.offload == "all" else 0
    update = _UPDATE_BYTES[layout.optimizer] + _AVERAGE_BYTES * layout.ema
    return (2 + weights) * share * _BYTES, update * share
