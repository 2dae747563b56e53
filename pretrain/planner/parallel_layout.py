"""One layout of a training, as the planner sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from pretrain.config import Offload, OptimizerName, ZeroStage
from pretrain.model.config import RecomputePolicy

OFFLOADS: tuple[Offload, ...] = get_args(Offload)
STAGES: tuple[ZeroStage, ...] = get_args(ZeroStage)


@dataclass(frozen=True, slots=True)
class ParallelLayout:
    """One layout of a training; sequence parallel where `tensor` > 1.

    Attributes:
        tensor: Tensor-parallel size.
        data: Data-parallel size.
        micro_batch: Sequences that one rank processes at a time.
        recompute: Policy as `ModelConfig.recompute`, for all layers.
        accumulates: Whether gradients of several micro-batches are summed, which takes fp32.
        offload: What is in host memory, one of `OFFLOADS`, as `parallel.offload`.
        optimizer: As `optim.name`.
        zero_stage: As `parallel.zero_stage`.
        hpz: As `parallel.hpz_partition_size`.
        ema: Whether the weights are averaged (`optim.ema`).
    """

    tensor: int
    data: int
    micro_batch: int
    recompute: RecomputePolicy
    accumulates: bool = False
    offload: Offload = "none"
    optimizer: OptimizerName = "adamw"
    zero_stage: ZeroStage = 3
    hpz: int = 1
    ema: bool = False

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.tensor * self.data
