"""The fp32 tensors that an optimiser updates under DeepSpeed, at every ZeRO stage."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_replicated(zero: Any) -> bool:
    """Whether DeepSpeed's optimiser is stage 0's `pretrain.parallel.replicated.ReplicatedOptimizer`."""
    return hasattr(zero, "masters")


def fp32_masters(zero: Any) -> list[Tensor]:
    """The master weights that this rank updates, in an order that stays.

    Args:
        zero: DeepSpeed's optimiser, which wraps torch's.

    Returns:
        At stage 0 one tensor a parameter, else flat partitions [n]; on the host where they are offloaded.

    Raises:
        TypeError: Of an optimiser that keeps them elsewhere.
    """
    if is_replicated(zero):
        return list(zero.masters.values())
    for name in (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 that accumulates bf16 gradients in fp32
    ):
        if hasattr(zero, name):
            return list(getattr(zero, name))
    raise TypeError(f"{type(zero).__name__} keeps its masters elsewhere")
