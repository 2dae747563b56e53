"""Saves and loads one engine's state in three ways on every rank (for `benchmarks.checkpoint`)."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.packed import packed_batch
from benchmarks.ranks import become_rank
from pretrain.config import TrainingConfig

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

OURS, DEEPSPEED, DCP = "ours", "DeepSpeed", "torch DCP"

Way = tuple[Callable[[], Callable[[], object]], Callable[[], object]]
"""A function that starts a save and returns one that waits for its end; and one that loads what was saved."""


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint to save in several ways.

    Attributes:
        config: Of the engine.
        folder: Of the checkpoint; emptied after each way.
        rounds: Turns of each way.
        port: Of the ranks' rendezvous.
    """

    config: TrainingConfig
    folder: Path
    rounds: int
    port: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One save and load of one rank.

    Attributes:
        stall: Seconds for which the training cannot continue.
        processor: Processor time of this thread in them, in seconds.
        write: Seconds until the checkpoint is complete, the stall included.
        load: Seconds until the state is in the engine again.
    """

    stall: float
    processor: float
    write: float
    load: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of one rank.

    Attributes:
        shard: Bytes of weights and moments in fp32 that the rank writes.
        copies: Seconds of copying as many bytes within the host's memory, one a round.
        turns: By the way of saving.
        bytes: On the disk, of all ranks, by the way of saving.
    """

    shard: int
    copies: list[float]
    turns: dict[str, list[Turn]]
    bytes: dict[str, int]


def measure(case: Case, rank: int) -> Measured:
    """Build the engine, train a step so that there are moments, then measure; in a process of its own."""
    parallel = case.config.parallel
    become_rank(parallel, rank, case.port)
    # Imported late: DeepSpeed looks for GPUs when it is imported.
    import torch.distributed as dist

    from pretrain.checkpoint.fragments import fragments
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.mesh import Mesh

    groups = ProcessGroups.create(Mesh(parallel.tensor, parallel.data))
    engine = Engine.build(case.config, groups)
    trainer = case.config.trainer
    engine.step([packed_batch(1, trainer.sequence_length, 64, groups.data_rank)], learning_rate=1e-4)
    shard = sum(4 * state.numel() for f in fragments(engine) if f.is_writer for state in f.states.values())
    ways = _ways(engine, case.folder)
    turns: dict[str, list[Turn]] = {name: [] for name in ways}
    sizes: dict[str, int] = {}
    source, target = torch.ones(shard // 4), torch.zeros(shard // 4)
    copies: list[float] = []
    for _ in range(case.rounds):
        dist.barrier()
        start = time.perf_counter()
        target.copy_(source)
        copies.append(time.perf_counter() - start)
        for name, (save, load) in ways.items():
            dist.barrier()
            start, processor = time.perf_counter(), time.thread_time()
            finish = save()
            stalled, processor = time.perf_counter(), time.thread_time() - processor
            finish()
            dist.barrier()
            written = time.perf_counter()
            load()
            dist.barrier()
            loaded = time.perf_counter()
            turns[name].append(Turn(stalled - start, processor, written - start, loaded - written))
            sizes[name] = sum(path.stat().st_size for path in case.folder.rglob("*") if path.is_file())
            dist.barrier()
            if rank == 0:
                shutil.rmtree(case.folder)
    dist.destroy_process_group()
    return Measured(shard, copies, turns, sizes)


def _ways(engine: Engine, folder: Path) -> dict[str, Way]:
    """Each saves the same state of the same engine: fp32 weights, their moments and the count of updates."""
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    from pretrain.checkpoint.boxed_tensor import BoxedTensor
    from pretrain.checkpoint.fragments import fragments, optimizer_step
    from pretrain.checkpoint.load import load
    from pretrain.checkpoint.location import step_folder
    from pretrain.checkpoint.save import CheckpointWriter

    writer = CheckpointWriter(folder, engine)

    def save_ours() -> Callable[[], object]:
        writer.save(1, {"tokens": 0})
        return writer.wait

    def save_deepspeed() -> Callable[[], object]:
        engine.deepspeed_engine.save_checkpoint(str(folder), tag="1")
        return _nothing

    def state() -> dict[str, BoxedTensor]:
        """The engine's own memory, which DCP writes from and reads into."""
        return {
            f"{kind}/{part.name}": BoxedTensor(part.shape, part.boxes, values)
            for part in fragments(engine)
            for kind, values in part.states.items()
        }

    def save_dcp() -> Callable[[], object]:
        dcp_save({**state(), "step": torch.tensor(optimizer_step(engine))}, checkpoint_id=folder)
        return _nothing

    return {
        OURS: (save_ours, lambda: load(step_folder(folder, 1), engine)),
        DEEPSPEED: (save_deepspeed, lambda: engine.deepspeed_engine.load_checkpoint(str(folder), tag="1")),
        DCP: (save_dcp, lambda: dcp_load({**state(), "step": torch.tensor(0)}, checkpoint_id=folder)),
    }


def _nothing() -> None:
    """Nothing to wait for."""
