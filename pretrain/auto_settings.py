"""`model.recompute=auto` and `parallel.zero_stage=auto`: chosen once, before any rank builds the network.

The choice is by the planner's estimate for the layout and the smallest GPU of the run; rank 0 makes it for
all. It changes the speed, and the result by rounding alone: in fp32 gradients differ by up to 1e-8 between
recompute policies, losses by 1e-6 between ZeRO stages. So a run may go on with another choice on other GPUs.

The policy is for all layers. Recomputing just as many as have to be would put every run at the edge of an
estimate that has not been measured.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.distributed as dist

from pretrain.config import TrainingConfig, ZeroStage
from pretrain.model.config import RECOMPUTE_POLICIES, RecomputePolicy
from pretrain.parallel.groups import ProcessGroups
from pretrain.planner.gpus import DEFAULT_MEMORY_RESERVE, Machine
from pretrain.planner.layouts import recommended
from pretrain.planner.memory import GPU, activation_bytes, estimate_memory
from pretrain.planner.parallel_layout import STAGES, ParallelLayout
from pretrain.planner.speed import estimate_step
from pretrain.rank_zero import run_on_rank_zero

_LOG = logging.getLogger(__name__)
_AUTO = "auto"


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """The GPUs of a run.

    Attributes:
        name: Device name.
        memory: Bytes of the smallest.
        node_gpus: Ranks on a node.
    """

    name: str
    memory: float
    node_gpus: int


@dataclass(frozen=True, slots=True)
class AutoChoice:
    """What `auto` stands for in this start of a run.

    Attributes:
        recompute: Policy of all layers.
        zero_stage: ZeRO stage.
        needed: Bytes of a GPU by estimate; 0 on CPUs.
        usable: Bytes of a GPU that a training may use; 0 on CPUs.
    """

    recompute: RecomputePolicy
    zero_stage: ZeroStage
    needed: float = 0.0
    usable: float = 0.0

    def as_event(self) -> dict[str, str | int | float]:
        """Fields of the event `auto_settings`; on CPUs, whose memory is not estimated, without bytes."""
        chosen: dict[str, str | int | float] = {"recompute": self.recompute, "zero_stage": self.zero_stage}
        return chosen | ({"needed": self.needed, "usable": self.usable} if self.usable else {})

    @property
    def fits(self) -> bool:
        """Whether the estimate leaves the reserve."""
        return self.needed <= self.usable

    def __str__(self) -> str:
        words = f"model.recompute={self.recompute} parallel.zero_stage={self.zero_stage}"
        if not self.usable:
            return f"{words} chosen for CPUs"
        sizes = f"{self.needed / 1e9:.1f} GB of a GPU's {self.usable / 1e9:.1f} GB (without the reserve)"
        return f"{words} chosen: {sizes}, an estimate"


def resolve_on_ranks(
    config: TrainingConfig, groups: ProcessGroups
) -> tuple[TrainingConfig, AutoChoice | None]:
    """The settings without `auto`, the same on every rank, and the choice; every rank calls this.

    Args:
        config: Settings that `pretrain.checks.check_training` has accepted.
        groups: Of this rank.

    Returns:
        The settings as they are, and None, where none of them is `auto`.
    """
    if not _open_settings(config):
        return config, None
    gpu = _gpu_facts(groups)
    choice = run_on_rank_zero(lambda: choose(config, gpu))
    if groups.rank == 0:
        _LOG.info("%s", choice)
        if not choice.fits:
            _LOG.warning(
                "by estimate this training does not fit its GPUs; `worldvla inspect memory` says what does"
            )
    return apply_choice(config, choice), choice


def choose(config: TrainingConfig, gpu: GpuFacts | None) -> AutoChoice:
    """The quickest of the settings that are open that fits the GPUs; where none fits, what needs least.

    Between equally quick ones: the least recomputation, the lowest stage.

    Args:
        config: Of the training.
        gpu: The GPUs; None: CPUs, where nothing is recomputed and the lowest possible stage is taken, the one
            with the fewest hooks.
    """
    layouts = list(_layouts(config))
    if gpu is None:
        return AutoChoice(layouts[0].recompute, layouts[0].zero_stage)
    usable = gpu.memory * (1 - DEFAULT_MEMORY_RESERVE)
    needs = [needed_bytes(config, layout, gpu.node_gpus) for layout in layouts]
    at = min(range(len(layouts)), key=needs.__getitem__)
    fitting = [number for number, need in enumerate(needs) if need <= usable]
    if fitting:
        machine = Machine.of_device(gpu.name, gpu.node_gpus)
        seconds = [_seconds(config, layouts[number], machine) for number in fitting]
        at = fitting[
            recommended([(s, needs[number]) for s, number in zip(seconds, fitting, strict=True)], usable)
        ]
    return AutoChoice(layouts[at].recompute, layouts[at].zero_stage, needs[at], usable)


def apply_choice(config: TrainingConfig, choice: AutoChoice) -> TrainingConfig:
    """The settings with a choice in the place of `auto`."""
    return replace(
        config,
        model=replace(config.model, recompute=choice.recompute),
        parallel=replace(config.parallel, zero_stage=choice.zero_stage),
    )


def needed_bytes(config: TrainingConfig, layout: ParallelLayout, node_gpus: int) -> float:
    """Bytes of a GPU that a training needs in a layout, by estimate.

    Beyond the planner's own estimate this knows fp32, uncompiled functions, layers that are not recomputed,
    and tensor parallelism without sequence parallelism.
    """
    model, length = config.model, config.trainer.sequence_length
    full_precision = config.trainer.precision == "fp32"
    kernels = replace(GPU, value_bytes=4 if full_precision else 2, compiled=model.compile != "off")
    memory = estimate_memory(model, layout, length, node_gpus, kernels)
    extra = 0.0
    if full_precision:  # twice the bytes of what would be in bf16
        extra += memory.weights + memory.gradients + memory.buffers
    tokens = layout.micro_batch * length
    if model.recompute_layers is not None:
        plain = activation_bytes(model, "none", tokens, layout.tensor, kernels)
        kept = 1 - min(1.0, model.recompute_layers / model.layers)
        extra += kept * (plain - memory.activations)
    if layout.tensor > 1 and not config.parallel.sequence_parallel:
        streams = 1 if layout.recompute == "full" else 4  # at most, of a layer's residual streams
        whole = model.layers * streams * tokens * model.hidden_size * kernels.value_bytes
        extra += whole * (1 - 1 / layout.tensor)
    return memory.total + extra


def _open_settings(config: TrainingConfig) -> bool:
    return _AUTO in (config.model.recompute, config.parallel.zero_stage)


def _layouts(config: TrainingConfig) -> Iterator[ParallelLayout]:
    """The layouts that the settings leave open: the least recomputation first, then the lowest stage."""
    parallel, trainer = config.parallel, config.trainer
    share = trainer.global_batch // parallel.data
    micro_batch = min(share, trainer.micro_batch or share)
    policies = RECOMPUTE_POLICIES if config.model.recompute == _AUTO else (config.model.recompute,)
    for policy, stage in product(policies, _stages(config)):
        yield ParallelLayout(
            parallel.tensor,
            parallel.data,
            micro_batch,
            policy,
            share > micro_batch,
            parallel.offload,
            config.optim.name,
            stage,
            parallel.hpz_partition_size,
            config.optim.ema is not None,
        )


def _stages(config: TrainingConfig) -> tuple[ZeroStage, ...]:
    parallel = config.parallel
    if parallel.zero_stage != _AUTO:
        return (parallel.zero_stage,)
    # To offload is to save memory, and hpZ is of stage 3.
    return (3,) if parallel.offload != "none" or parallel.hpz_partition_size > 1 else STAGES


def _seconds(config: TrainingConfig, layout: ParallelLayout, machine: Machine) -> float:
    share = config.trainer.global_batch // config.parallel.data
    length = config.trainer.sequence_length
    return estimate_step(config.model, layout, length, share, machine).seconds


def _gpu_facts(groups: ProcessGroups) -> GpuFacts | None:
    """The GPUs of all ranks; None on CPUs."""
    if groups.device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(groups.device)
    memory = least_of_ranks(properties.total_memory, groups.device)
    return GpuFacts(properties.name, memory, groups.node_ranks)


def least_of_ranks(value: int, device: torch.device) -> int:
    """The smallest value of all ranks; every rank calls this."""
    smallest = torch.tensor(value, dtype=torch.int64, device=device)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest)
