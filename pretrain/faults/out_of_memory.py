"""A device that is out of memory: one line that says which layouts would fit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from data.errors import InputError
from pretrain.config import TrainingConfig
from pretrain.planner.gpus import DEFAULT_EFFICIENCY, DEFAULT_MEMORY_RESERVE, Machine
from pretrain.planner.layouts import LayoutEstimate, LayoutRequest, feasible_layouts

_ANY_GPU = "H100"  # whose speed orders the layouts of a GPU that no data sheet is known of
_MOST_NODE_GPUS = 8
_LISTED = 3


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
        raise InputError(f"out of memory on {device}: {advice(config, memory, name)}") from error


def advice(config: TrainingConfig, gpu_memory: float, gpu: str) -> str:
    """Which layouts of the same ranks and the same global batch fit.

    Args:
        config: Of the training that did not fit.
        gpu_memory: Bytes of one GPU; 0: not known.
        gpu: Its name.
    """
    now = _named(
        config.parallel.tensor, config.parallel.data, config.trainer.micro_batch, config.model.recompute
    )
    if not gpu_memory:
        return f"{now}; lower trainer.micro_batch, or take more ranks"
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
        return f"{now}; {error}"
    fitting = "; ".join(_described(plan) for plan in plans[:_LISTED])
    return (
        f"{now}; by estimate these fit {gpu_memory / 1e9:.4g} GB (parallel.zero_stage=3), the quickest "
        f"first: {fitting}"
    )


def _machine(gpu: str) -> Machine:
    try:
        return Machine.of_gpu(gpu, DEFAULT_EFFICIENCY, _MOST_NODE_GPUS)
    except InputError:
        return Machine.of_gpu(_ANY_GPU, DEFAULT_EFFICIENCY, _MOST_NODE_GPUS)


def _described(plan: LayoutEstimate) -> str:
    layout = plan.layout
    named = _named(layout.tensor, layout.data, layout.micro_batch, layout.recompute)
    offload = f" parallel.offload={layout.offload}" if layout.offload != "none" else ""
    return f"{named}{offload} ({plan.memory.total / 1e9:.1f} GB)"


def _named(tensor: int, data: int, micro_batch: int | None, recompute: str) -> str:
    size = "null" if micro_batch is None else micro_batch
    return (
        f"parallel.tensor={tensor} parallel.data={data} trainer.micro_batch={size} "
        f"model.recompute={recompute}"
    )
