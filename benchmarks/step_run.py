"""Trains some steps of one variant in a fresh process and measures them (for `benchmarks.step`)."""

from __future__ import annotations

import os
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.packed import packed_batch
from benchmarks.report import peak_memory
from data.contracts import PackedBatch
from pretrain.checks import check_hardware, check_training
from pretrain.config import TrainingConfig
from pretrain.model.attention.choose import check_backend
from pretrain.planner.flops import Workload
from pretrain.telemetry.meters import peak_flops

# A world of one rank, as torchrun would set it.
ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


@dataclass(frozen=True, slots=True)
class Case:
    """One variant.

    Attributes:
        model: Its name in `configs/model`.
        all_layers: Layers of that model; `config.model.layers` may be fewer.
        config: Of the engine.
        micro_batches: In a step.
        pixels: Side of the frames.
        steps: Timed steps of a turn, after two of warm-up.
        device: `cpu` or `cuda`.
    """

    model: str
    all_layers: int
    config: TrainingConfig
    micro_batches: int
    pixels: int
    steps: int
    device: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of a variant.

    Attributes:
        seconds: Of each timed step.
        work: Of one step, over all ranks.
        square_pairs: Pairs (query, key) within the samples of that work, those of later keys included.
        peak_flops: Of all ranks together, FLOP/s.
        held: Bytes on this rank's GPU between steps; None on a CPU.
        added: Peak of bytes allocated by a step besides those.
        attention: The backend.
    """

    seconds: list[float]
    work: Workload
    square_pairs: int
    peak_flops: float
    held: int | None
    added: int
    attention: str


def measure(case: Case) -> Measured | None:
    """Train some steps in this process (a fresh one); None if the GPU is out of memory."""
    become_alone(case.device)
    try:
        return _train(case)
    except torch.cuda.OutOfMemoryError:
        return None


def become_alone(device: str) -> None:
    """Set the environment of a world of one rank, unless torchrun has set that of another.

    Args:
        device: `cpu` or `cuda`.
    """
    if device == "cpu":
        os.environ.update(CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    os.environ.update({key: os.environ.get(key, value) for key, value in ALONE.items()})
    # DeepSpeed still calls collectives by names that torch renamed: one warning a call site and rank.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)


def _train(case: Case) -> Measured:
    # Imported late: DeepSpeed looks for GPUs when it is imported.
    import torch.distributed as dist

    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.mesh import Mesh

    parallel = case.config.parallel
    check_training(case.config)
    groups = ProcessGroups.create(Mesh(parallel.tensor, parallel.data))
    check_hardware(case.config, groups.device)
    peak = _peak_of_all(groups.device, case.config.trainer.precision)
    engine = Engine.build(case.config, groups)
    batches = _batches(case, groups.data_rank)

    def step() -> float:
        return float(engine.step(batches, learning_rate=1e-6).loss)  # waits for the device

    for _ in range(2):
        step()
    held = torch.cuda.memory_allocated() if case.device == "cuda" else None
    seconds: list[float] = []
    for _ in range(case.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    dtype = torch.bfloat16 if case.config.trainer.precision == "bf16" else torch.float32
    mine = sum((Workload.of(batch) for batch in batches), Workload())
    result = Measured(
        seconds=seconds,
        work=sum([mine] * parallel.data, Workload()),
        square_pairs=parallel.data * sum(map(square_pairs, batches)),
        peak_flops=peak,
        held=held,
        added=peak_memory(step, case.device),
        attention=check_backend(case.config.model, groups.device, dtype),
    )
    dist.destroy_process_group()
    return result


def square_pairs(batch: PackedBatch) -> int:
    """Pairs (query, key) within the samples of a micro-batch, as attention without a mask would have them."""
    return sum(
        int((np.unique(row[row > 0], return_counts=True)[1].astype(np.int64) ** 2).sum())
        for row in batch.segments
    )


def _peak_of_all(device: torch.device, precision: str) -> float:
    """FLOP/s of all ranks; measured at the same time, since those on one CPU share its cores."""
    import torch.distributed as dist

    dist.barrier()
    peak = torch.tensor(peak_flops(device, precision), device=device)
    dist.all_reduce(peak)
    return float(peak)


def _batches(case: Case, data_rank: int) -> list[PackedBatch]:
    trainer, first = case.config.trainer, 1000 * data_rank
    assert trainer.micro_batch is not None
    return [
        packed_batch(trainer.micro_batch, trainer.sequence_length, case.pixels, seed)
        for seed in range(first, first + case.micro_batches)
    ]
