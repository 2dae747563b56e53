"""Which layouts of a training fit the GPUs, best first. Pure: sizes in, a list out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

from data.errors import InputError
from pretrain.config import Offload, OptimizerName
from pretrain.model.config import RECOMPUTE_POLICIES, ModelConfig
from pretrain.model.transformer import check_divides
from pretrain.planner.memory import OFFLOADS, Layout, Memory, memory
from pretrain.planner.speed import BANDWIDTHS, Machine, Speed, speed
from pretrain.telemetry.meters import known_peak

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
        offloads: What may lie in host memory, values of `OFFLOADS`.
        host_memory: Bytes of host memory for each GPU; None: as much as is needed.
        optimizer: As `optim.name`.
    """

    model: ModelConfig
    gpus: int
    gpu_memory: float
    reserve: float
    sequence_length: int
    micro_batches: Sequence[int]
    global_batch: int | None
    machine: Machine
    offloads: Sequence[Offload] = OFFLOADS
    host_memory: float | None = None
    optimizer: OptimizerName = "adamw"

    def holds(self, need: Memory) -> bool:
        """Whether GPU and host have the memory."""
        return need.total <= self.usable and (self.host_memory is None or need.host <= self.host_memory)

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
    fitting = [plan for plan in plans if wanted.holds(plan.memory)]
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
            for policy, offload in product(RECOMPUTE_POLICIES, wanted.offloads):
                layout = Layout(
                    tensor, data, micro_batch, policy, share > micro_batch, offload, wanted.optimizer
                )
                need = memory(wanted.model, layout, wanted.sequence_length)
                step = speed(wanted.model, layout, wanted.sequence_length, share, wanted.machine)
                plans.append(Plan(layout, need, step))
    return plans


def machine(gpu: str, efficiency: float, node_gpus: int) -> Machine:
    """What the data sheet says about a GPU by its name.

    Raises:
        InputError: A GPU that is not listed.
    """
    peak = known_peak(gpu, "bf16")
    for part, node, network, host in BANDWIDTHS:
        if part in gpu and peak is not None:
            return Machine(peak, efficiency, node_gpus, node, network, host)
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
    if not wanted.offloads:
        raise InputError(f"offloads=[], expected some of {', '.join(OFFLOADS)}; correct the setting")
    if not 0 <= wanted.reserve < 1:
        raise InputError(f"reserve={wanted.reserve}, expected at least 0 and below 1; correct the setting")
    if not 0 < wanted.machine.efficiency <= 1:
        raise InputError(f"efficiency={wanted.machine.efficiency}, expected above 0, at most 1; correct it")


def _nothing_fits(wanted: Wanted, plans: list[Plan]) -> str:
    if not any(plan.memory.total <= wanted.usable for plan in plans):
        return _no_gpu_fits(wanted, plans)
    best = min(
        (plan for plan in plans if plan.memory.total <= wanted.usable), key=lambda plan: plan.memory.host
    )
    return (
        f"nothing fits a host memory of {(wanted.host_memory or 0) / 1e9:.4g} GB a GPU: the least need is "
        f"{best.memory.host / 1e9:.1f} GB (offload {best.layout.offload}), and without offloading gpus="
        f"{wanted.gpus} of {wanted.gpu_memory / 1e9:.4g} GB are too few; take more GPUs or more host memory"
    )


def _no_gpu_fits(wanted: Wanted, plans: list[Plan]) -> str:
    best = min(plans, key=lambda plan: (plan.memory.total, plan.memory.host))
    layout, need = best.layout, best.memory
    enough = fewest_gpus(wanted)
    advice = f"take gpus={enough}" if enough else "take a shorter sequence_length or a smaller model"
    more = need.total / (1 - wanted.reserve)
    return (
        f"nothing fits gpus={wanted.gpus} of {wanted.gpu_memory / 1e9:.4g} GB ({wanted.usable / 1e9:.4g} GB "
        f"without the reserve): the least need is {need.total / 1e9:.1f} GB a GPU (tensor {layout.tensor}, "
        f"data {layout.data}, micro-batch {layout.micro_batch}, recompute {layout.recompute}, offload "
        f"{layout.offload}), "
        f"{need.state / 1e9:.1f} GB of it weights, gradients and optimiser; {advice}, or GPUs of "
        f"{more / 1e9:.0f} GB"
    )


def fewest_gpus(wanted: Wanted) -> int | None:
    """The next number of GPUs, doubling, on which something fits; None: none does."""
    gpus = wanted.gpus
    while gpus < _MOST_GPUS:
        gpus *= 2
        larger = replace(wanted, gpus=gpus)
        if any(wanted.holds(plan.memory) for plan in all_plans(larger)):
            return gpus
    return None


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
