"""What one optimiser step communicates and how long it may take: an estimate, not a measurement.

    compute   = FLOPs with recomputation / (efficiency x peak FLOP/s)
    tensor    = bytes of tensor parallelism / bandwidth inside a node: the layers wait for it
    partition = bytes of ZeRO-3 / bandwidth inside a node, or of the network where the ranks are on several;
                there also the latency of rings: 3 collectives a layer and micro-batch of d - 1 steps each
    host      = bytes of offloading / bandwidth to the host + bytes of the update / bandwidth of its memory
    step      = max(compute, partition) + tensor + host

Bytes that one GPU sends, b = 2 for bf16, P parameters of its tensor-parallel rank, t = tensor, d = data:

    ZeRO-3 a micro-batch   3 P b (d - 1) / d          gathered forward and backward, gradients scattered
    a layer a micro-batch  8 T H b (t - 1) / t        two branches, gather and scatter, forward and backward
                           selective + 2, full + 4    gathered again; the whole forward pass again

Bytes between a GPU and its host, S = P / d parameters of its share:

    optimizer     2 S b           gradients down, new weights up, once a step; the update on the host reads
                                  and writes 28 bytes a parameter of its memory
    all           + 2 S b a micro-batch   weights up, forward and backward
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.model.config import ModelConfig
from pretrain.planner.memory import Layout, parameters
from pretrain.telemetry.meters import Work

_BYTES = 2
# Passes of the layers' matrix products, forward 1 and backward 2; selective runs element-wise functions
# again: 6 % of a measured step (docs/measurements.md).
_AGAIN = {"none": 0.0, "selective": 0.06, "full": 1 / 3}
_COLLECTIVES = {"none": 8, "selective": 10, "full": 12}
# A parameter, AdamW: weight, gradient and two moments read, all but the gradient written. Lion runs in
# passes: decay 8, direction 12, its sign 8, moment 12, scaled 8, weight 12.
_UPDATE_BYTES = {"adamw": 28, "lion": 60}


@dataclass(frozen=True, slots=True)
class Machine:
    """What the step time is estimated from.

    Attributes:
        peak: Dense bf16 FLOP/s of one GPU.
        efficiency: Share of the peak that the network's products reach; not a measurement.
        node_gpus: GPUs of one node.
        node_bandwidth: Bytes a second that a GPU sends to others of its node.
        network_bandwidth: Bytes a second that a GPU sends to other nodes.
        host_bandwidth: Bytes a second between a GPU and its host.
        host_memory_bandwidth: Bytes a second of the host's memory, for each of its GPUs.
        hop: Seconds of latency of one step of a ring over nodes; not a measurement.
    """

    peak: float
    efficiency: float = 0.45
    node_gpus: int = 8
    node_bandwidth: float = 450e9
    network_bandwidth: float = 50e9
    host_bandwidth: float = 63e9
    host_memory_bandwidth: float = 40e9
    hop: float = 3e-6


# Bytes a second in one direction by a part of the GPU's name: NVLink (PCIe where there is none), one
# network card a GPU as in the vendor's own machines, and PCIe to the host. Source: the vendors' data sheets.
BANDWIDTHS = (
    ("B200", 900e9, 50e9, 63e9),
    ("H200", 450e9, 50e9, 63e9),
    ("H100 NVL", 300e9, 50e9, 63e9),
    ("H100 PCIe", 64e9, 50e9, 63e9),
    ("H100", 450e9, 50e9, 63e9),
    ("A100", 300e9, 25e9, 32e9),
    ("L40S", 32e9, 25e9, 32e9),
)


@dataclass(frozen=True, slots=True)
class Speed:
    """One optimiser step.

    Attributes:
        partition_bytes: That a GPU sends for ZeRO-3.
        tensor_bytes: That a GPU sends for tensor parallelism.
        host_bytes: Between a GPU and its host for what is offloaded.
        seconds: Of the step, estimated.
        utilisation: Model FLOP/s over the peak (MFU), estimated.
        compute: Seconds that the GPU computes, estimated; part of `seconds`.
        partition: Seconds of ZeRO-3's collectives, estimated; beside the computing.
        tensor: Seconds of tensor parallelism's, estimated; part of `seconds`.
    """

    partition_bytes: float
    tensor_bytes: float
    host_bytes: float
    seconds: float
    utilisation: float
    compute: float
    partition: float
    tensor: float


def speed(model: ModelConfig, layout: Layout, sequence_length: int, share: int, machine: Machine) -> Speed:
    """Of one optimiser step.

    Every position counts as labelled and every sequence as one sample: more work than packed samples are.

    Args:
        model: The network.
        layout: How it is trained.
        sequence_length: Tokens of a sequence.
        share: Sequences that one data-parallel rank has in a step.
        machine: The GPUs.
    """
    micro_batches = share // layout.micro_batch
    tokens = share * sequence_length
    sent = (layout.data - 1) / layout.data
    partition_bytes = 3 * sum(parameters(model, layout.tensor)) * _BYTES * sent * micro_batches
    sent = (layout.tensor - 1) / layout.tensor
    collectives = model.layers * _COLLECTIVES[layout.recompute]
    tensor_bytes = collectives * tokens * model.hidden_size * _BYTES * sent
    pairs = tokens * (sequence_length + 1) // 2
    useful = Work(tokens, tokens, pairs).flops(model) / layout.tensor
    head = Work(0, tokens, 0).flops(model) / layout.tensor
    # The loss makes its logits again in the backward pass, whatever the policy.
    done = useful + _AGAIN[layout.recompute] * (useful - head) + head / 3
    compute = done / (machine.efficiency * machine.peak)
    partition = _partition_seconds(layout, partition_bytes, 3 * model.layers * micro_batches, machine)
    tensor = tensor_bytes / machine.node_bandwidth
    host, update = _offloading(layout, sum(parameters(model, layout.tensor)) / layout.data, micro_batches)
    seconds = max(compute, partition) + tensor
    seconds += host / machine.host_bandwidth + update / machine.host_memory_bandwidth
    utilisation = useful / (seconds * machine.peak)
    return Speed(partition_bytes, tensor_bytes, host, seconds, utilisation, compute, partition, tensor)


def _partition_seconds(layout: Layout, sent: float, collectives: int, machine: Machine) -> float:
    """Of ZeRO-3's gathers and scatters."""
    if layout.tensor * layout.data <= machine.node_gpus:
        return sent / machine.node_bandwidth
    return sent / machine.network_bandwidth + collectives * (layout.data - 1) * machine.hop


def _offloading(layout: Layout, share: float, micro_batches: int) -> tuple[float, float]:
    """Bytes between GPU and host in a step, and bytes of host memory that the update moves."""
    if layout.offload == "none":
        return 0.0, 0.0
    weights = 2 * micro_batches if layout.offload == "all" else 0
    return (2 + weights) * share * _BYTES, _UPDATE_BYTES[layout.optimizer] * share
