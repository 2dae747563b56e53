"""Which layouts of a training fit the GPUs, best first. Pure functions: sizes in, a list out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from data.errors import InputError
from pretrain.config import Offload, OptimizerName, ZeroStage
from pretrain.model.config import RECOMPUTE_POLICIES, ModelConfig, RecomputePolicy
from pretrain.model.transformer import check_divides
from pretrain.planner.gpus import Machine
from pretrain.planner.memory import MemoryEstimate, estimate_memory
from pretrain.planner.parallel_layout import OFFLOADS, STAGES, ParallelLayout
from pretrain.planner.speed import StepEstimate, estimate_step

NEARLY_AS_QUICK = 0.02
COMFORTABLE = 0.9  # share of the usable memory
MICRO_BATCHES = (1, 2, 4, 8)  # tried where none is given
_MAX_GPUS = 65_536


@dataclass(frozen=True, slots=True)
class LayoutRequest:
    """The network to train, the GPUs to train it on and the sizes to try.

    Attributes:
        model: The network; its own recompute policy is not read.
        gpus: Number of GPUs.
        gpu_memory: Bytes of each.
        reserve: Share of it left to the driver, communication libraries and the allocator's fragmentation.
        sequence_length: Tokens of a packed sequence.
        micro_batches: Micro-batch sizes to try, in sequences.
        global_batch: Sequences in an optimiser step; None: four for each GPU.
        machine: How fast the GPUs are.
        offloads: What may be in host memory, values of `OFFLOADS`; something only at stage 3.
        host_memory: Bytes of host memory for each GPU; None: unlimited.
        optimizer: As `optim.name`.
        stages: ZeRO stages to try.
        policies: Recompute policies to try.
        hpz: Whether to try hpZ over the GPUs of a node, where stage 3 crosses nodes without tensor parallel.
        ema: Whether the weights are averaged (`optim.ema`).
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
    stages: Sequence[ZeroStage] = STAGES
    policies: Sequence[RecomputePolicy] = RECOMPUTE_POLICIES
    hpz: bool = True
    ema: bool = False

    def fits(self, memory: MemoryEstimate) -> bool:
        """Whether GPU and host have the memory."""
        return memory.total <= self.usable and (self.host_memory is None or memory.host <= self.host_memory)

    @property
    def usable(self) -> float:
        """Bytes of a GPU that a training may use."""
        return self.gpu_memory * (1 - self.reserve)

    @property
    def step_sequences(self) -> int:
        """Sequences in an optimiser step."""
        return 4 * self.gpus if self.global_batch is None else self.global_batch


@dataclass(frozen=True, slots=True)
class LayoutEstimate:
    """One layout, the memory it needs and the time its step takes."""

    layout: ParallelLayout
    memory: MemoryEstimate
    step: StepEstimate


def feasible_layouts(request: LayoutRequest) -> list[LayoutEstimate]:
    """The layouts that fit: first the one to take (`recommended`), then the fastest step first.

    Of equally fast ones the one that needs less memory is before the other.

    Raises:
        InputError: A size is out of its range, or nothing fits: states the least memory that is needed and
            what to change.
    """
    _check(request)
    estimates = estimate_layouts(request)
    if not estimates:
        raise InputError(
            f"no layout shares {request.step_sequences} sequences a step (global_batch) out over "
            f"gpus={request.gpus} in micro-batches of {', '.join(map(str, request.micro_batches))}; change "
            "one of them"
        )
    fitting = [estimate for estimate in estimates if request.fits(estimate.memory)]
    if not fitting:
        raise InputError(_nothing_fits(request, estimates))
    fitting.sort(key=lambda estimate: (estimate.step.seconds, estimate.memory.total))
    needs = [(estimate.step.seconds, estimate.memory.total) for estimate in fitting]
    fitting.insert(0, fitting.pop(recommended(needs, request.usable)))
    return fitting


def recommended(needs: Sequence[tuple[float, float]], usable: float) -> int:
    """Number of the layout to take, of those that fit: the quickest, unless it is at the edge of the memory.

    Estimates err by more than `NEARLY_AS_QUICK`: for as little it is not worth to come near the limit.

    Args:
        needs: Seconds of a step and bytes of a GPU of each.
        usable: Bytes of a GPU that a training may use.
    """
    longest = min(seconds for seconds, _ in needs) * (1 + NEARLY_AS_QUICK)
    near = [number for number, (seconds, _) in enumerate(needs) if seconds <= longest]
    return min(near, key=lambda number: (needs[number][1] > COMFORTABLE * usable, needs[number][0]))


def estimate_layouts(request: LayoutRequest) -> list[LayoutEstimate]:
    """Every layout that the sizes allow, whether it fits or not."""
    estimates = []
    for tensor in _tensor_sizes(request):
        data = request.gpus // tensor
        share, rest = divmod(request.step_sequences, data)
        if rest or (tensor > 1 and request.sequence_length % tensor):
            continue
        for micro_batch in sorted(set(request.micro_batches)):
            if share == 0 or share % micro_batch:
                continue
            estimates += [
                _estimate(request, layout, share)
                for layout in _layouts(request, tensor, data, micro_batch, share)
            ]
    return estimates


def fewest_gpus(request: LayoutRequest) -> int | None:
    """The next number of GPUs, doubling, on which a layout fits; None: none up to 65,536."""
    gpus = request.gpus
    while gpus < _MAX_GPUS:
        gpus *= 2
        larger = replace(request, gpus=gpus)
        if any(request.fits(estimate.memory) for estimate in estimate_layouts(larger)):
            return gpus
    return None


def _layouts(
    request: LayoutRequest, tensor: int, data: int, micro_batch: int, share: int
) -> Iterator[ParallelLayout]:
    """The layouts of these sizes: recompute policies with the partitionings that training accepts."""
    for policy, offload, stage in product(request.policies, request.offloads, request.stages):
        if offload != "none" and stage != 3:
            continue  # to save memory is what it is for
        for hpz in _hpz_sizes(request, tensor, data) if stage == 3 and offload == "none" else (1,):
            yield ParallelLayout(
                tensor,
                data,
                micro_batch,
                policy,
                share > micro_batch,
                offload,
                request.optimizer,
                stage,
                hpz,
                request.ema,
            )


def _hpz_sizes(request: LayoutRequest, tensor: int, data: int) -> tuple[int, ...]:
    node = request.machine.node_gpus
    return (1, node) if request.hpz and tensor == 1 and 1 < node < data and data % node == 0 else (1,)


def _estimate(request: LayoutRequest, layout: ParallelLayout, share: int) -> LayoutEstimate:
    memory = estimate_memory(request.model, layout, request.sequence_length, request.machine.node_gpus)
    step = estimate_step(request.model, layout, request.sequence_length, share, request.machine)
    return LayoutEstimate(layout, memory, step)


def _tensor_sizes(request: LayoutRequest) -> list[int]:
    """Powers of two that divide the GPUs and the network and fit into a node."""
    sizes, tensor = [], 1
    while tensor <= min(request.gpus, request.machine.node_gpus):
        if request.gpus % tensor == 0 and _divides(request.model, tensor):
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


def _check(request: LayoutRequest) -> None:
    at_least_one = {
        "gpus": request.gpus,
        "sequence_length": request.sequence_length,
        "node_gpus": request.machine.node_gpus,
        "micro_batches": min(request.micro_batches, default=0),
        "global_batch": request.step_sequences,
        **{
            f"model.{name}": getattr(request.model, name)
            for name in ("vocabulary_size", "hidden_size", "ffn_size", "layers", "heads")
        },
        "model.key_value_heads": request.model.shared_heads,
    }
    for name, value in at_least_one.items():
        if value < 1:
            raise InputError(f"{name}={value}, expected 1 or more; correct the setting")
    if not request.offloads:
        raise InputError(f"offloads=[], expected some of {', '.join(OFFLOADS)}; correct the setting")
    if not request.stages:
        raise InputError(f"stages=[], expected some of {', '.join(map(str, STAGES))}; correct the setting")
    if not 0 <= request.reserve < 1:
        raise InputError(f"reserve={request.reserve}, expected at least 0 and below 1; correct the setting")
    if not 0 < request.machine.efficiency <= 1:
        raise InputError(f"efficiency={request.machine.efficiency}, expected above 0, at most 1; correct it")


def _nothing_fits(request: LayoutRequest, estimates: list[LayoutEstimate]) -> str:
    on_gpu = [estimate for estimate in estimates if estimate.memory.total <= request.usable]
    if not on_gpu:
        return _no_gpu_fits(request, estimates)
    best = min(on_gpu, key=lambda estimate: estimate.memory.host)
    return (
        f"nothing fits a host memory of {(request.host_memory or 0) / 1e9:.4g} GB a GPU: the least need is "
        f"{best.memory.host / 1e9:.1f} GB (offload {best.layout.offload}), and without offloading gpus="
        f"{request.gpus} of {request.gpu_memory / 1e9:.4g} GB are too few; take more GPUs or more host memory"
    )


def _no_gpu_fits(request: LayoutRequest, estimates: list[LayoutEstimate]) -> str:
    best = min(estimates, key=lambda estimate: (estimate.memory.total, estimate.memory.host))
    layout, memory = best.layout, best.memory
    enough = fewest_gpus(request)
    advice = f"take gpus={enough}" if enough else "take a shorter sequence_length or a smaller model"
    larger = memory.total / (1 - request.reserve)
    return (
        f"nothing fits gpus={request.gpus} of {request.gpu_memory / 1e9:.4g} GB "
        f"({request.usable / 1e9:.4g} GB without the reserve): the least need is "
        f"{memory.total / 1e9:.1f} GB a GPU (tensor {layout.tensor}, data {layout.data}, "
        f"micro-batch {layout.micro_batch}, recompute {layout.recompute}, ZeRO-{layout.zero_stage}, "
        f"offload {layout.offload}), "
        f"{memory.state / 1e9:.1f} GB of it weights, gradients and optimiser; {advice}, or GPUs of "
        f"{larger / 1e9:.0f} GB"
    )
