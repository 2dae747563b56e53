"""Layouts that fit the GPUs, with the memory, communication and step time that each is estimated to need."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich import box
from rich.table import Table

from cluster.inspect.config import InspectMemoryConfig
from cluster.overrides import override
from cluster.resources.evaluation_needs import describe_memory
from data.errors import InputError
from data.sizes import parse_bytes
from eval.config import EvaluationSettings
from pretrain.planner.evaluation import evaluation_memory
from pretrain.planner.gpus import Machine
from pretrain.planner.layouts import LayoutEstimate, LayoutRequest, feasible_layouts
from pretrain.planner.parallel_layout import ParallelLayout
from pretrain.planner.parameters import count_parameters

ESTIMATE = "estimate, not measured"
TABLE_WIDTH = 150  # columns that the table needs; it is not folded to a narrow terminal


def plan_layouts(config: InspectMemoryConfig) -> tuple[LayoutRequest, list[LayoutEstimate]]:
    """The request to the planner, and the layouts that fit, the quickest first.

    Raises:
        InputError: A setting is out of range, or no layout fits.
    """
    if config.show < 1:
        raise InputError(f"show={config.show}, expected 1 or more; correct the setting")
    request = LayoutRequest(
        model=config.model,
        gpus=config.gpus,
        gpu_memory=parse_bytes("gpu_memory", config.gpu_memory),
        reserve=config.reserve,
        sequence_length=config.sequence_length,
        micro_batches=config.micro_batches,
        global_batch=config.global_batch,
        machine=Machine.of_gpu(config.gpu, config.efficiency, config.node_gpus),
        offloads=config.offloads,
        host_memory=_host_memory(config),
        optimizer=config.optimizer,
        ema=config.ema,
        stages=config.stages,
        hpz=config.hpz,
    )
    return request, feasible_layouts(request)


def _host_memory(config: InspectMemoryConfig) -> float | None:
    """Bytes of host memory per GPU; None: unlimited."""
    if config.host_memory is None:
        return None
    return parse_bytes("host_memory", config.host_memory) / max(1, min(config.node_gpus, config.gpus))


def layouts_table(request: LayoutRequest, estimates: Sequence[LayoutEstimate], num_fitting: int) -> Table:
    """One line per layout.

    Args:
        request: The request to the planner.
        estimates: Layouts to show.
        num_fitting: Number of layouts that fit.
    """
    values = sum(count_parameters(request.model))
    table = Table(
        title=f"{values / 1e9:.3g} B parameters on {request.gpus} GPUs of {request.gpu_memory / 1e9:.4g} GB: "
        f"{len(estimates)} of {num_fitting} layouts that fit, memory a GPU in GB",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for name in ("tensor", "data", "micro-\nbatch"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("recompute", "ZeRO", "offload"):
        table.add_column(name, no_wrap=True)
    for name in ("total", "weights", "gradi-\nents", "opti-\nmiser", "activa-\ntions", "loss or\nlayer"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in (
        "ZeRO\nbuffers",
        "in host\nmemory",
        "GB sent\na step",
        "s a step\n(estimate)",
        "MFU %\n(estimate)",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by", no_wrap=True)
    for estimate in estimates:
        layout, need, step = estimate.layout, estimate.memory, estimate.step
        sizes = (need.total, need.weights, need.gradients, need.optimiser, need.activations)
        sizes += (max(need.loss, need.layer), need.buffers, need.host)
        sizes += (step.partition_bytes + step.tensor_bytes,)
        table.add_row(
            str(layout.tensor),
            str(layout.data),
            str(layout.micro_batch),
            layout.recompute,
            _stage_name(layout),
            layout.offload,
            *(f"{size / 1e9:.1f}" for size in sizes),
            f"{step.seconds:.3g}",
            f"{100 * step.utilisation:.0f}",
            step.bound,
        )
    return table


def _stage_name(layout: ParallelLayout) -> str:
    """`3`, or `3,hpZ=8`."""
    return f"{layout.zero_stage}" + (f",hpZ={layout.hpz}" if layout.hpz > 1 else "")


def layouts_content(
    config: InspectMemoryConfig, request: LayoutRequest, estimates: Sequence[LayoutEstimate]
) -> dict[str, object]:
    """The layouts as `--json` prints them."""
    rows = [
        {
            **asdict(estimate.layout),
            "sequence_parallel": estimate.layout.tensor > 1,
            "memory_bytes": {
                **{name: round(value) for name, value in asdict(estimate.memory).items()},
                "total": round(estimate.memory.total),
            },
            "sent_bytes_per_step": {
                "zero": round(estimate.step.partition_bytes),
                "tensor": round(estimate.step.tensor_bytes),
                "host": round(estimate.step.host_bytes),
            },
            "step_seconds": estimate.step.seconds,
            "seconds_of": {
                "compute": estimate.step.compute,
                "launches": estimate.step.launches,
                "zero_overlapped": estimate.step.partition,
                "zero_exposed": estimate.step.exposed,
                "tensor": estimate.step.tensor,
                "offload": estimate.step.offload,
            },
            "bound_by": estimate.step.bound,
            "mfu": estimate.step.utilisation,
        }
        for estimate in estimates
    ]
    return {
        "parameters": sum(count_parameters(request.model)),
        "gpus": request.gpus,
        "gpu_memory_bytes": round(request.gpu_memory),
        "usable_bytes": round(request.usable),
        "host_memory_bytes": None if request.host_memory is None else round(request.host_memory),
        "sequence_length": request.sequence_length,
        "global_batch": request.step_sequences,
        "gpu": config.gpu,
        "machine": asdict(request.machine),
        "evaluation_bytes": round(evaluation_memory(request.model, EvaluationSettings().batch).total),
        "basis": ESTIMATE,
        "layouts": rows,
    }


def explanation_lines(
    config: InspectMemoryConfig, request: LayoutRequest, best: LayoutEstimate
) -> Iterator[str]:
    """Assumptions behind the table, and the best layout as settings."""
    gpu = request.machine
    yield (
        "  bf16 with fp32 master weights, sequence parallel where tensor > 1, offload at ZeRO stage 3 alone; "
        f"{request.step_sequences} sequences of {request.sequence_length} tokens a step"
    )
    yield (
        "  total: the peak; the optimiser's update replaces activations, loss and layer where it is larger"
    )
    yield (
        f"  step time: {ESTIMATE}: {config.gpu} at {100 * config.efficiency:.4g} % of "
        f"{gpu.peak / 1e12:.4g} TFLOP/s, {gpu.node_bandwidth / 1e9:.4g} GB/s inside a node, "
        f"{gpu.network_bandwidth / 1e9:.4g} GB/s between nodes, {gpu.host_bandwidth / 1e9:.4g} GB/s to the "
        f"host, whose memory moves {gpu.host_memory_bandwidth / 1e9:.4g} GB/s for each GPU"
    )
    yield (
        f"  assumed: {100 * gpu.contention:.4g} % of what overlaps delays the step, Python starts a layer in "
        f"{1e3 * gpu.launch:.4g} ms, stage 3's hooks add {1e3 * gpu.hooks:.4g} ms"
    )
    need = evaluation_memory(request.model, EvaluationSettings().batch)
    yield (
        f"  an evaluation's policy, on a GPU apart from these: {describe_memory(need)}, for "
        f"{EvaluationSettings().batch} observations at a time"
    )
    yield f"  take the first: {' '.join(_layout_overrides(request, best))}"


def _layout_overrides(request: LayoutRequest, estimate: LayoutEstimate) -> list[str]:
    """A layout as `key=value` words of `worldvla train`."""
    layout = estimate.layout
    values: dict[str, object] = {
        "parallel.tensor": layout.tensor,
        "parallel.data": layout.data,
        "parallel.zero_stage": layout.zero_stage,
    }
    if layout.hpz > 1:
        values["parallel.hpz_partition_size"] = layout.hpz
    if layout.tensor > 1:
        values["parallel.sequence_parallel"] = True
    values |= {
        "trainer.global_batch": request.step_sequences,
        "trainer.micro_batch": layout.micro_batch,
        "trainer.sequence_length": request.sequence_length,
        "trainer.precision": "bf16",
        "model.recompute": layout.recompute,
    }
    if layout.optimizer != "adamw":
        values["optim.name"] = layout.optimizer
    if layout.offload != "none":
        values["parallel.offload"] = layout.offload
    return [override(key, value) for key, value in values.items()]
