"""What one optimiser step communicates and how long it may take: an estimate, not a measurement.

    compute   = FLOPs with recomputation / (efficiency x peak FLOP/s)
    tensor    = bytes of tensor parallelism / bandwidth inside a node: the layers wait for it
    partition = bytes of ZeRO-3 / bandwidth inside a node, or of the network where the ranks are on several
    step      = max(compute, partition) + tensor

Bytes that one GPU sends, b = 2 for bf16, P parameters of its tensor-parallel rank, t = tensor, d = data:

    ZeRO-3 a micro-batch   3 P b (d - 1) / d          gathered forward and backward, gradients scattered
    a layer a micro-batch  8 T H b (t - 1) / t        two branches, gather and scatter, forward and backward
                           selective + 2, full + 4    gathered again; the whole forward pass again
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


@dataclass(frozen=True, slots=True)
class Machine:
    """What the step time is estimated from.

    Attributes:
        peak: Dense bf16 FLOP/s of one GPU.
        efficiency: Share of the peak that the network's products reach; not a measurement.
        node_gpus: GPUs of one node.
        node_bandwidth: Bytes a second that a GPU sends to others of its node.
        network_bandwidth: Bytes a second that a GPU sends to other nodes.
    """

    peak: float
    efficiency: float = 0.45
    node_gpus: int = 8
    node_bandwidth: float = 450e9
    network_bandwidth: float = 50e9


# Bytes a second in one direction by a part of the GPU's name: NVLink (PCIe where there is none), and one
# network card a GPU as in the vendor's own machines. Source: the vendors' data sheets.
BANDWIDTHS = (
    ("B200", 900e9, 50e9),
    ("H200", 450e9, 50e9),
    ("H100 NVL", 300e9, 50e9),
    ("H100 PCIe", 64e9, 50e9),
    ("H100", 450e9, 50e9),
    ("A100", 300e9, 25e9),
    ("L40S", 32e9, 25e9),
)


@dataclass(frozen=True, slots=True)
class Speed:
    """One optimiser step.

    Attributes:
        partition_bytes: That a GPU sends for ZeRO-3.
        tensor_bytes: That a GPU sends for tensor parallelism.
        seconds: Of the step, estimated.
        utilisation: Model FLOP/s over the peak (MFU), estimated.
    """

    partition_bytes: float
    tensor_bytes: float
    seconds: float
    utilisation: float


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
    partition = 3 * sum(parameters(model, layout.tensor)) * _BYTES * sent * micro_batches
    sent = (layout.tensor - 1) / layout.tensor
    collectives = model.layers * _COLLECTIVES[layout.recompute]
    tensor = collectives * tokens * model.hidden_size * _BYTES * sent
    one_node = layout.tensor * layout.data <= machine.node_gpus
    between = machine.node_bandwidth if one_node else machine.network_bandwidth
    pairs = tokens * (sequence_length + 1) // 2
    useful = Work(tokens, tokens, pairs).flops(model) / layout.tensor
    head = Work(0, tokens, 0).flops(model) / layout.tensor
    # The loss makes its logits again in the backward pass, whatever the policy.
    done = useful + _AGAIN[layout.recompute] * (useful - head) + head / 3
    compute = done / (machine.efficiency * machine.peak)
    seconds = max(compute, partition / between) + tensor / machine.node_bandwidth
    return Speed(partition, tensor, seconds, useful / (seconds * machine.peak))
