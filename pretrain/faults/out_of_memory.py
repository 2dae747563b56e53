"""Out of memory on a device: one line that says which layouts would fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data.errors import InputError
from pretrain.config import TrainingConfig
from pretrain.planner.gpus import DEFAULT_EFFICIENCY, DEFAULT_MEMORY_RESERVE, Machine
from pretrain.planner.layouts import LayoutEstimate, LayoutRequest, feasible_layouts

_FALLBACK_GPU = "H100"  # its speed orders the layouts for a GPU without a known data sheet
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
    current = _settings_of(
        config.parallel.tensor, config.parallel.data, config.trainer.micro_batch, config.model.recompute
    )
    if not gpu_memory:
        return f"{current}; lower trainer.micro_batch, or take more ranks"
    share = config.trainer.global_batch // config.parallel.data
    try:
        plans = feasible_layouts(
            LayoutRequest(
                model=config.model,
                gpus=config.parallel.tensor * config.parallel.data,
                gpu_memory=gpu_memory,
                reserve=DEFAULT_MEMORY_RESERVE,
                sequence_length=config.trainer.sequence_length,
                micro_batches=[size for size in (1, 2, 4, 8) if size <= max(1, share)],
                global_batch=config.trainer.global_batch,
                machine=_machine(gpu),
                optimizer=config.optim.name,
            )
        )
    except InputError as error:
        return f"{current}; {error}"
    fitting = "; ".join(_describe(plan) for plan in plans[:_MAX_LISTED])
    return (
        f"{current}; by estimate these fit {gpu_memory / 1e9:.4g} GB (parallel.zero_stage=3), the quickest "
        f"first: {fitting}"
    )


def _machine(gpu: str) -> Machine:
    try:
        return Machine.of_gpu(gpu, DEFAULT_EFFICIENCY, _MAX_NODE_GPUS)
    except InputError:
        return Machine.of_gpu(_FALLBACK_GPU, DEFAULT_EFFICIENCY, _MAX_NODE_GPUS)


def _describe(plan: LayoutEstimate) -> str:
    layout = plan.layout
    settings = _settings_of(layout.tensor, layout.data, layout.micro_batch, layout.recompute)
    offload = f" parallel.offload={layout.offload}" if layout.offload != "none" else ""
    return f"{settings}{offload} ({plan.memory.total / 1e9:.1f} GB)"


def _settings_of(tensor: int, data: int, micro_batch: int | None, recompute: str) -> str:
    size = "null" if micro_batch is None else micro_batch
    return (
        f"parallel.tensor={tensor} parallel.data={data} trainer.micro_batch={size} "
        f"model.recompute={recompute}"
    )
