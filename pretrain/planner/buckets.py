"""Sizes of ZeRO's buffers, from the network's size: DeepSpeed is given them and the planner counts them.

A bucket of gradients is about a layer: it is reduced while the layer before runs its backward pass. Below
`LEAST_BUCKET` a message would be bound by latency; above `MOST_BUCKET` a buffer would only cost memory. No
bucket exceeds the rank's parameters.

Stage 3 gathers a matrix before it is used. Inside a node each matrix has a gather of its own
(`stage3_allgather_sequential`): it arrives in the tensor that is used, without the copy out of a common
buffer (at 7 B 56 GB of GPU memory traffic in a micro-batch, by arithmetic 17 ms of 620 at 8,192 tokens). Such
a gather hides behind the product of one matrix from T tokens on, where

    T = efficiency x peak FLOP/s / bandwidth = 0.45 x 989 TFLOP/s / 450 GB/s = 990 tokens

Over the network of 50 GB/s that would be 8,900 tokens, and each gather has the latency of a ring over all
ranks: there a layer is gathered at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.model.config import ModelConfig
from pretrain.planner.parameters import count_parameters

LEAST_BUCKET = 25_000_000
MOST_BUCKET = 500_000_000
LEAST_LIVE = 1_000_000_000  # as DeepSpeed; 2 GB in bf16
LIVE_LAYERS = 3  # the layer that runs, the next one, and one that is being released


@dataclass(frozen=True, slots=True)
class ZeroBuckets:
    """Sizes in elements.

    Attributes:
        reduce: Gradients reduced at a time; a buffer of this size (stages 1 and 2: two) is allocated.
        prefetch: Parameters of stage 3 gathered by one collective ahead of their use; 1: one matrix.
        live: Parameters of stage 3 that are whole at a time; those needed again within as many stay.
        sequential: Whether each matrix has a gather of its own.
    """

    reduce: int
    prefetch: int
    live: int
    sequential: bool


def zero_buckets(model: ModelConfig, tensor: int, one_node: bool) -> ZeroBuckets:
    """Sizes for one tensor-parallel rank.

    Args:
        model: The network.
        tensor: Tensor-parallel size.
        one_node: Whether all ranks are on one node.
    """
    parameters, layer = sum(count_parameters(model, tensor)), model.layer_matrices // tensor
    bucket = min(parameters, max(LEAST_BUCKET, min(layer, MOST_BUCKET)))
    live = min(parameters, max(LEAST_LIVE, LIVE_LAYERS * layer))
    return ZeroBuckets(bucket, 1 if one_node else bucket, live, one_node)
