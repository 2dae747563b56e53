"""Out of memory on a device: one line that says which layouts would fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data.errors import InputError
from pretrain.config import TrainingConfig, ZeroStageChoice
from pretrain.planner.gpus import DEFAULT_MEMORY_RESERVE, Machine
from pretrain.planner.layouts import MICRO_BATCHES, LayoutEstimate, LayoutRequest, feasible_layouts
from pretrain.planner.parallel_layout import ParallelLayout

_MAX_NODE_GPUS = 8
_MAX_LISTED = 3


@contextmanager
def explained_out_of_memory(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Turn `torch.OutOfMemoryError` within the block into an InputError with layouts that fit the device."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        memory, name = 0, ""
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            memory, name = properties.total_memory, properties.name
        raise InputError(f"out of memory on {device}: {layout_advice(config, memory, name)}") from error


def layout_advice(config: TrainingConfig, gpu_memory: float, gpu: str) -> str:
    """Layouts of the same number of ranks and the same global batch that fit, in words.

    Args:
        config: Settings of the training that did not fit.
        gpu_memory: Bytes of one GPU; 0: not known.
        gpu: Name of the GPU.
    """
    parallel, micro_batch = config.parallel, config.trainer.micro_batch
    current = _settings_of(
        parallel.tensor, parallel.data, micro_batch, config.model.recompute, parallel.zero_stage
    )
    if not gpu_memory:
        return f"{current}; lower trainer.micro_batch, or take more ranks"
    share = config.trainer.global_batch // parallel.data
    try:
        plans = feasible_layouts(
            LayoutRequest(
                model=config.model,
                gpus=parallel.tensor * parallel.data,
                gpu_memory=gpu_memory,
                reserve=DEFAULT_MEMORY_RESERVE,
                sequence_length=config.trainer.sequence_length,
                micro_batches=[size for size in MICRO_BATCHES if size <= max(1, share)],
                global_batch=config.trainer.global_batch,
                machine=Machine.of_device(gpu, _MAX_NODE_GPUS),
                optimizer=config.optim.name,
                ema=config.optim.ema is not None,
            )
        )
    except InputError as error:
        return f"{current}; {error}"
    others = [plan for plan in plans if not _is_current(plan.layout, config)]
    fitting = "; ".join(_describe(plan) for plan in others[:_MAX_LISTED])
    return f"{current}; by estimate these fit {gpu_memory / 1e9:.4g} GB, the quickest first: {fitting}"


def _is_current(layout: ParallelLayout, config: TrainingConfig) -> bool:
    """Whether a layout is the one that has run out of memory, which estimates may miss."""
    parallel = config.parallel
    share = config.trainer.global_batch // parallel.data
    return (
        (layout.tensor, layout.data, layout.zero_stage, layout.offload, layout.hpz)
        == (
            parallel.tensor,
            parallel.data,
            parallel.zero_stage,
            parallel.offload,
            parallel.hpz_partition_size,
        )
        and layout.micro_batch == (config.trainer.micro_batch or share)
        and layout.recompute == config.model.recompute
    )


def _describe(plan: LayoutEstimate) -> str:
    layout = plan.layout
    settings = _settings_of(
        layout.tensor, layout.data, layout.micro_batch, layout.recompute, layout.zero_stage
    )
    hpz = f" parallel.hpz_partition_size={layout.hpz}" if layout.hpz > 1 else ""
    offload = f" parallel.offload={layout.offload}" if layout.offload != "none" else ""
    return f"{settings}{hpz}{offload} ({plan.memory.total / 1e9:.1f} GB)"


def _settings_of(
    tensor: int, data: int, micro_batch: int | None, recompute: str, stage: ZeroStageChoice
) -> str:
    size = "null" if micro_batch is None else micro_batch
    return (
        f"parallel.tensor={tensor} parallel.data={data} trainer.micro_batch={size} "
        f"model.recompute={recompute} parallel.zero_stage={stage}"
    )
