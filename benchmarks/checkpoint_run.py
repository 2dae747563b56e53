"""Saves and loads one engine's state in several ways on every rank (for `benchmarks.checkpoint`)."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.checkpoint_ways import Way, make_ways
from benchmarks.packed import packed_batch
from benchmarks.ranks import become_rank
from data.contracts import PackedBatch
from pretrain.config import TrainingConfig

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

STEPS_AFTER = 2  # steps after a save, in which it is written


@dataclass(frozen=True, slots=True)
class Case:
    """A checkpoint to save in several ways.

    Attributes:
        config: Of the engine.
        folder: Of the checkpoint; emptied after each save.
        rounds: Turns of each way.
        port: Of the ranks' rendezvous.
    """

    config: TrainingConfig
    folder: Path
    rounds: int
    port: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One save of a training that goes on, and one of a training that stands still, of one rank.

    Attributes:
        stall: Seconds for which the training stands still: in the save, and before the next update.
        next_step: Seconds of the save and the step after it.
        processor: Processor time of the save, `STEPS_AFTER` steps after it and the wait for its end.
        write: Seconds until the checkpoint is complete where no training goes on.
        load: Seconds until the state is in the engine again.
    """

    stall: float
    next_step: float
    processor: float
    write: float
    load: float


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements of one rank.

    Attributes:
        shard: Bytes of weights and moments in fp32 that the rank writes.
        copies: Seconds of copying as many bytes within the host's memory, one a round.
        plain_steps: Seconds, and seconds of processor time, of steps without a save, one before each save.
        turns: By the way of saving.
        bytes: On the disk, of all ranks, by the way of saving.
    """

    shard: int
    copies: list[float]
    plain_steps: list[tuple[float, float]]
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
    training = _Training(Engine.build(case.config, groups), case)
    training.step()
    held = [fragment for fragment in fragments(training.engine) if fragment.is_writer]
    shard = sum(4 * state.numel() for fragment in held for state in fragment.states.values())
    ways = make_ways(training.engine, case.folder)
    result = Measured(shard, [], [], {name: [] for name in ways}, {})
    source, target = torch.ones(shard // 4), torch.zeros(shard // 4)
    for _ in range(case.rounds):
        dist.barrier()
        start = time.perf_counter()
        target.copy_(source)
        result.copies.append(time.perf_counter() - start)
        for name, way in ways.items():
            result.plain_steps.append(training.step())
            turn, result.bytes[name] = training.turn(way)
            result.turns[name].append(turn)
    dist.destroy_process_group()
    return result


class _Training:
    """Steps of the engine with saves between them."""

    def __init__(self, engine: Engine, case: Case) -> None:
        self.engine, self._folder = engine, case.folder
        length, rank = case.config.trainer.sequence_length, engine.groups.data_rank
        self._batches: list[PackedBatch] = [packed_batch(1, length, 64, rank)]

    def step(self) -> tuple[float, float]:
        """Train a step; returns its seconds, and those of processor time."""
        self._barrier()
        start, processor = time.perf_counter(), time.process_time()
        self._step()
        return time.perf_counter() - start, time.process_time() - processor

    def turn(self, way: Way) -> tuple[Turn, int]:
        """Save and load where no training goes on, then save beside one; the bytes on the disk, too."""
        self._barrier()
        start = time.perf_counter()
        way.save()()
        self._barrier()
        written = time.perf_counter()
        way.load()
        self._barrier()
        loaded = time.perf_counter()
        size = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        self._remove()
        # The second, as loading in another way may have moved the engine's memory.
        way.take_wait()
        begin, processor = time.perf_counter(), time.process_time()
        finish = way.save()
        in_save = time.perf_counter() - begin
        self._step()
        next_step, waited = time.perf_counter() - begin, way.take_wait()
        for _ in range(STEPS_AFTER - 1):
            self._step()
        finish()
        processor = time.process_time() - processor
        self._remove()
        return Turn(in_save + waited, next_step, processor, written - start, loaded - written), size

    def _step(self) -> None:
        self.engine.step(self._batches, learning_rate=1e-4)

    def _remove(self) -> None:
        self._barrier()
        if self.engine.groups.rank == 0:
            shutil.rmtree(self._folder)
        self._barrier()

    def _barrier(self) -> Any:
        import torch.distributed as dist

        dist.barrier()
