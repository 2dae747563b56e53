"""`worldvla inspect memory`: layouts that fit the GPUs, with what each is estimated to need."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich import box
from rich.table import Table

from cluster.inspect.config import InspectMemoryConfig
from cluster.invocation import Invocation
from data.errors import InputError
from data.sizes import parse_bytes
from pretrain.planner.gpus import Machine
from pretrain.planner.layouts import LayoutEstimate, LayoutRequest, feasible_layouts
from pretrain.planner.memory import count_parameters

ESTIMATE = "estimate, not measured"
_WIDTH = 130


def inspect_memory(config: InspectMemoryConfig, call: Invocation) -> None:
    """`worldvla inspect memory`.

    Raises:
        InputError: A setting that cannot be, or no layout fits.
    """
    if config.show < 1:
        raise InputError(f"show={config.show}, expected 1 or more; correct the setting")
    wanted = LayoutRequest(
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
    )
    plans = feasible_layouts(wanted)
    if call.json:
        print(json.dumps(_content(config, wanted, plans), indent=2))
        return
    shown = plans[: config.show]
    # A narrow terminal, or none, must not cost digits.
    call.console.width = max(call.console.width, _WIDTH)
    call.console.print(_table(wanted, shown, len(plans)))
    call.console.print(
        "  ZeRO stage 3, bf16 with fp32 master weights, sequence parallel where tensor > 1; "
        f"{wanted.step_sequences} sequences of {wanted.sequence_length} tokens a step"
    )
    gpu = wanted.machine
    call.console.print(
        "  total: the peak; the optimiser's update takes the place of activations, loss and layer where "
        "it is larger"
    )
    call.console.print(
        f"  step time: {ESTIMATE}: {config.gpu} at {100 * config.efficiency:.4g} % of "
        f"{gpu.peak / 1e12:.4g} TFLOP/s, {gpu.node_bandwidth / 1e9:.4g} GB/s inside a node, "
        f"{gpu.network_bandwidth / 1e9:.4g} GB/s between nodes, {gpu.host_bandwidth / 1e9:.4g} GB/s to the "
        f"host, whose memory moves {gpu.host_memory_bandwidth / 1e9:.4g} GB/s for each GPU"
    )
    call.console.print(f"  take the first: {_settings(wanted, plans[0])}")


def _host_memory(config: InspectMemoryConfig) -> float | None:
    """Bytes for each GPU of a node that are asked for."""
    if config.host_memory is None:
        return None
    return parse_bytes("host_memory", config.host_memory) / max(1, min(config.node_gpus, config.gpus))


def _table(wanted: LayoutRequest, plans: list[LayoutEstimate], found: int) -> Table:
    values = sum(count_parameters(wanted.model))
    table = Table(
        title=f"{values / 1e9:.3g} B parameters on {wanted.gpus} GPUs of {wanted.gpu_memory / 1e9:.4g} GB: "
        f"{len(plans)} of {found} layouts that fit, memory a GPU in GB",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for name in ("tensor", "data", "micro-\nbatch"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("recompute", no_wrap=True)
    table.add_column("offload", no_wrap=True)
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
    for plan in plans:
        layout, need, step = plan.layout, plan.memory, plan.step
        sizes = (need.total, need.weights, need.gradients, need.optimiser, need.activations)
        sizes += (max(need.loss, need.layer), need.buffers, need.host)
        sizes += (step.partition_bytes + step.tensor_bytes,)
        table.add_row(
            str(layout.tensor),
            str(layout.data),
            str(layout.micro_batch),
            layout.recompute,
            layout.offload,
            *(f"{size / 1e9:.1f}" for size in sizes),
            f"{step.seconds:.3g}",
            f"{100 * step.utilisation:.0f}",
        )
    return table


def _content(
    config: InspectMemoryConfig, wanted: LayoutRequest, plans: list[LayoutEstimate]
) -> dict[str, object]:
    rows = [
        {
            **asdict(plan.layout),
            "zero_stage": 3,
            "sequence_parallel": plan.layout.tensor > 1,
            "memory_bytes": {
                **{name: round(value) for name, value in asdict(plan.memory).items()},
                "total": round(plan.memory.total),
            },
            "sent_bytes_per_step": {
                "zero": round(plan.step.partition_bytes),
                "tensor": round(plan.step.tensor_bytes),
                "host": round(plan.step.host_bytes),
            },
            "step_seconds": plan.step.seconds,
            "mfu": plan.step.utilisation,
        }
        for plan in plans
    ]
    return {
        "parameters": sum(count_parameters(wanted.model)),
        "gpus": wanted.gpus,
        "gpu_memory_bytes": round(wanted.gpu_memory),
        "usable_bytes": round(wanted.usable),
        "host_memory_bytes": None if wanted.host_memory is None else round(wanted.host_memory),
        "sequence_length": wanted.sequence_length,
        "global_batch": wanted.step_sequences,
        "gpu": config.gpu,
        "machine": asdict(wanted.machine),
        "basis": ESTIMATE,
        "layouts": rows,
    }


def _settings(wanted: LayoutRequest, plan: LayoutEstimate) -> str:
    """A layout as it is written on the command line of `worldvla train`."""
    layout = plan.layout
    words = [f"parallel.tensor={layout.tensor}", f"parallel.data={layout.data}", "parallel.zero_stage=3"]
    if layout.tensor > 1:
        words.append("parallel.sequence_parallel=true")
    words += [
        f"trainer.global_batch={wanted.step_sequences}",
        f"trainer.micro_batch={layout.micro_batch}",
        f"trainer.sequence_length={wanted.sequence_length}",
        "trainer.precision=bf16",
        f"model.recompute={layout.recompute}",
    ]
    if layout.optimizer != "adamw":
        words.append(f"optim.name={layout.optimizer}")
    if layout.offload != "none":
        words.append(f"parallel.offload={layout.offload}")
    return " ".join(words)
