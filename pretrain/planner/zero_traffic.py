"""Bytes that ZeRO sends in an optimiser step and the seconds that they take: an estimate.

Sent by one GPU, in bf16 unless said, P parameters of its tensor-parallel rank, d = data, m micro-batches:

    stage 0   once      8 P (d - 1) / d   fp32 gradients averaged, after the backward pass
    stage 1   once      4 P (d - 1) / d   gradients averaged beside the last backward pass; accumulated ones
                                          in fp32 after it, 8 P
              once      2 P (d - 1) / d   new weights, after the update
    stage 2   m times   4 P (d - 1) / d   gradients averaged beside each backward pass; new weights as above
    stage 3   m times   (4 P + 2 A) (d - 1) / d   weights gathered for both passes (A of them anew for the
                                          backward pass, the rest stays), gradients scattered
    hpZ of h  once      2 P (d - 1) / d   gathered over all ranks for the first forward pass
              else      2 P, 2 A (h - 1) / h   gathered inside the node; gradients scattered as above

Bytes go through the node where all ranks are on one, else through the network; there each collective also
takes the latency of a ring, d - 1 hops: 3 a layer and micro-batch (hpZ: one, and one a step).
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.model.config import ModelConfig
from pretrain.planner.buckets import zero_buckets
from pretrain.planner.gpus import Machine
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.parameters import count_parameters

_BF16, _FP32 = 2, 4


@dataclass(frozen=True, slots=True)
class ZeroTraffic:
    """What one GPU sends in an optimiser step.

    Attributes:
        node_bytes: Inside its node, beside computation.
        network_bytes: Over the network, beside computation.
        latency: Seconds of hops of rings over nodes, beside computation.
        hidden_once: Bytes sent beside the last backward pass alone.
        exposed_bytes: Bytes sent while nothing is computed.
        crosses_nodes: Whether the last two go over the network.
    """

    node_bytes: float = 0.0
    network_bytes: float = 0.0
    latency: float = 0.0
    hidden_once: float = 0.0
    exposed_bytes: float = 0.0
    crosses_nodes: bool = False

    @property
    def bytes(self) -> float:
        """All bytes."""
        return self.node_bytes + self.network_bytes + self.hidden_once + self.exposed_bytes


def zero_traffic(
    model: ModelConfig, layout: ParallelLayout, micro_batches: int, machine: Machine
) -> ZeroTraffic:
    """What one GPU sends.

    Args:
        model: The network.
        layout: Of the ranks.
        micro_batches: In an optimiser step.
        machine: The GPUs.
    """
    crosses = layout.ranks > machine.node_gpus
    sent = sum(count_parameters(model, layout.tensor)) * (layout.data - 1) / layout.data
    if layout.zero_stage == 0:
        return ZeroTraffic(exposed_bytes=2 * _FP32 * sent, crosses_nodes=crosses)
    if layout.zero_stage == 1:
        hidden, exposed = 2 * _BF16 * sent, _BF16 * sent
        if layout.accumulates:
            hidden, exposed = 0.0, exposed + 2 * _FP32 * sent
        return ZeroTraffic(hidden_once=hidden, exposed_bytes=exposed, crosses_nodes=crosses)
    if layout.zero_stage == 2:
        beside = 2 * _BF16 * sent * micro_batches
        node, network = (0.0, beside) if crosses else (beside, 0.0)
        return ZeroTraffic(node, network, exposed_bytes=_BF16 * sent, crosses_nodes=crosses)
    return _stage_3(model, layout, micro_batches, machine)


def _stage_3(model: ModelConfig, layout: ParallelLayout, micro_batches: int, machine: Machine) -> ZeroTraffic:
    crosses = layout.ranks > machine.node_gpus
    parameters = sum(count_parameters(model, layout.tensor))
    live = zero_buckets(model, layout.tensor, not crosses).live
    # What the end of the forward pass has gathered last stays for the beginning of the backward pass.
    anew = max(0.0, parameters - live / 2)
    over_ranks, in_node = (layout.data - 1) / layout.data, (layout.hpz - 1) / layout.hpz
    gathered = _BF16 * (parameters + anew) * micro_batches
    scattered = _BF16 * parameters * micro_batches
    if layout.hpz == 1:
        everywhere, inside, collectives = (gathered + scattered) * over_ranks, 0.0, 3 * micro_batches
    else:
        first = _BF16 * parameters
        everywhere = (first + scattered) * over_ranks
        inside, collectives = (gathered - first) * in_node, 1 + micro_batches
    if not crosses:
        return ZeroTraffic(node_bytes=everywhere + inside)
    latency = collectives * model.layers * (layout.data - 1) * machine.hop
    return ZeroTraffic(inside, everywhere, latency, crosses_nodes=True)
