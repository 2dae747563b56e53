"""Which layouts of a training fit the GPUs, best first. Pure: sizes in, a list out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from data.errors import InputError
from pretrain.model.config import RECOMPUTE_POLICIES, ModelConfig
from pretrain.model.transformer import check_divides
from pretrain.planner.memory import Layout, Memory, memory
from pretrain.planner.speed import BANDWIDTHS, Machine, Speed, speed
from pretrain.telemetry.meters import known_peak

_UNITS = {"": 1e9, "GB": 1e9, "GIB": 2.0**30, "TB": 1e12, "TIB": 2.0**40, "MB": 1e6, "MIB": 2.0**20}
_MOST_GPUS = 65_536


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be trained, and on what.

    Attributes:
        model: The network; its own recompute policy is not read.
        gpus: Number of GPUs.
        gpu_memory: Bytes of each.
        reserve: Share of it for the driver, communication libraries and fragments of the allocator.
        sequence_length: Tokens of a packed sequence.
        micro_batches: Sequences a rank may process at a time.
        global_batch: Sequences in an optimiser step; None: four for each GPU.
        machine: How fast the GPUs are.
    """

    model: ModelConfig
    gpus: int
    gpu_memory: float
    reserve: float
    sequence_length: int
    micro_batches: Sequence[int]
    global_batch: int | None
    machine: Machine

    @property
    def usable(self) -> float:
        """Bytes of a GPU that a training may take."""
        return self.gpu_memory * (1 - self.reserve)

    @property
    def step_sequences(self) -> int:
        """Sequences in an optimiser step."""
        return 4 * self.gpus if self.global_batch is None else self.global_batch


@dataclass(frozen=True, slots=True)
class Plan:
    """One layout with what it needs."""

    layout: Layout
    memory: Memory
    speed: Speed


def feasible(wanted: Wanted) -> list[Plan]:
    """The layouts that fit, the quickest step first; of equal ones the one that needs less.

    Raises:
        InputError: Sizes that cannot be, or nothing fits: says what the least need is and what to do.
    """
    _check(wanted)
    plans = all_plans(wanted)
    if not plans:
        raise InputError(
            f"no layout shares {wanted.step_sequences} sequences a step (global_batch) out over "
            f"gpus={wanted.gpus} in micro-batches of {_listed(wanted.micro_batches)}; change one of them"
        )
    fitting = [plan for plan in plans if plan.memory.total <= wanted.usable]
    if not fitting:
        raise InputError(_nothing_fits(wanted, plans))
    return sorted(fitting, key=lambda plan: (plan.speed.seconds, plan.memory.total))


def all_plans(wanted: Wanted) -> list[Plan]:
    """Every layout that the sizes allow, whether it fits or not."""
    plans = []
    for tensor in _tensor_sizes(wanted):
        data = wanted.gpus // tensor
        share, rest = divmod(wanted.step_sequences, data)
        if rest or (tensor > 1 and wanted.sequence_length % tensor):
            continue
        for micro_batch in sorted(set(wanted.micro_batches)):
            if share == 0 or share % micro_batch:
                continue
            for policy in RECOMPUTE_POLICIES:
                layout = Layout(tensor, data, micro_batch, policy, accumulates=share > micro_batch)
                need = memory(wanted.model, layout, wanted.sequence_length)
                step = speed(wanted.model, layout, wanted.sequence_length, share, wanted.machine)
                plans.append(Plan(layout, need, step))
    return plans


def parse_bytes(name: str, text: str) -> float:
    """Bytes of `80GB`, `79.6GiB` or `80` (GB).

    Raises:
        InputError: Not a size above zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(found.group(2).upper()) if found else None
    if found is None or unit is None or float(found.group(1)) <= 0:
        raise InputError(
            f"{name}={text}: expected a size such as 80GB, 79.6GiB or 80 (GB); correct the setting"
        )
    return float(found.group(1)) * unit


def machine(gpu: str, efficiency: float, node_gpus: int) -> Machine:
    """What the data sheet says about a GPU by its name.

    Raises:
        InputError: A GPU that is not listed.
    """
    peak = known_peak(gpu, "bf16")
    for part, node, network in BANDWIDTHS:
        if part in gpu and peak is not None:
            return Machine(peak, efficiency, node_gpus, node, network)
    names = ", ".join(part for part, *_ in BANDWIDTHS)
    raise InputError(f"gpu={gpu}: not in the table of data sheets; expected one of {names}")


def _tensor_sizes(wanted: Wanted) -> list[int]:
    """Powers of two that divide the GPUs and the network and stay inside a node."""
    sizes, tensor = [], 1
    while tensor <= min(wanted.gpus, wanted.machine.node_gpus):
        if wanted.gpus % tensor == 0 and _divides(wanted.model, tensor):
            sizes.append(tensor)
        tensor *= 2
    return sizes


def _divides(model: ModelConfig, tensor: int) -> bool:
    try:
        check_divides(model, tensor)
    except InputError:
        if tensor == 1:
            raise
        return False
    return True


def _check(wanted: Wanted) -> None:
    least = {
        "gpus": wanted.gpus,
        "sequence_length": wanted.sequence_length,
        "node_gpus": wanted.machine.node_gpus,
        "micro_batches": min(wanted.micro_batches, default=0),
        "global_batch": wanted.step_sequences,
        **{
            f"model.{name}": getattr(wanted.model, name)
            for name in ("vocabulary_size", "hidden_size", "ffn_size", "layers", "heads")
        },
        "model.key_value_heads": wanted.model.shared_heads,
    }
    for name, value in least.items():
        if value < 1:
            raise InputError(f"{name}={value}, expected 1 or more; correct the setting")
    if not 0 <= wanted.reserve < 1:
        raise InputError(f"reserve={wanted.reserve}, expected at least 0 and below 1; correct the setting")
    if not 0 < wanted.machine.efficiency <= 1:
        raise InputError(f"efficiency={wanted.machine.efficiency}, expected above 0, at most 1; correct it")


def _nothing_fits(wanted: Wanted, plans: list[Plan]) -> str:
    best = min(plans, key=lambda plan: plan.memory.total)
    layout, need = best.layout, best.memory
    enough = fewest_gpus(wanted)
    advice = f"take gpus={enough}" if enough else "take a shorter sequence_length or a smaller model"
    more = need.total / (1 - wanted.reserve)
    return (
        f"nothing fits gpus={wanted.gpus} of {wanted.gpu_memory / 1e9:.4g} GB ({wanted.usable / 1e9:.4g} GB "
        f"without the reserve): the least need is {need.total / 1e9:.1f} GB a GPU (tensor {layout.tensor}, "
        f"data {layout.data}, micro-batch {layout.micro_batch}, recompute {layout.recompute}), "
        f"{need.state / 1e9:.1f} GB of it weights, gradients and optimiser; {advice}, or GPUs of "
        f"{more / 1e9:.0f} GB"
    )


def fewest_gpus(wanted: Wanted) -> int | None:
    """The next number of GPUs, doubling, on which something fits; None: none does."""
    gpus = wanted.gpus
    while gpus < _MOST_GPUS:
        gpus *= 2
        larger = replace(wanted, gpus=gpus)
        if any(plan.memory.total <= wanted.usable for plan in all_plans(larger)):
            return gpus
    return None


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
