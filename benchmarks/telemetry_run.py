"""Trains one engine with and without its telemetry, in turns, on every rank (for `benchmarks.telemetry`)."""

from __future__ import annotations

import os
import time
from contextlib import closing, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from benchmarks.packed import packed_batch
from benchmarks.ranks import become_rank
from data.contracts import PackedBatch
from pretrain.config import TrainingConfig

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine
    from pretrain.run_folder import RunFolder
    from pretrain.telemetry.recorder import Recorder

WITHOUT = "none"
_WARM_UP = 2
_START_SECONDS = 120.0
_LEARNING_RATE = 1e-6
_EPOCHS = {"shards/action": 0.5, "shards/world": 0.5}
_LAST = 10**9  # a schedule's end that is never reached: no line is due because of it


@dataclass(frozen=True, slots=True)
class Case:
    """A training to measure.

    Attributes:
        config: Of the engine; its run folder is for metrics and W&B's files.
        every: Steps between two lines of metrics, of each way.
        turns: Of each way.
        steps: Timed steps of a turn.
        port: Of the ranks' rendezvous.
    """

    config: TrainingConfig
    every: tuple[int, ...]
    turns: int
    steps: int
    port: int


@dataclass(frozen=True, slots=True)
class Turn:
    """Some steps in a row of one rank.

    Attributes:
        way: `none`, or the steps between two lines.
        seconds: Of the whole turn; ranks start and end it together.
        processor: Processor time of this rank's process in seconds.
        lines: Written meanwhile, on rank 0.
    """

    way: str
    seconds: float
    processor: float
    lines: int


def measure(case: Case, rank: int) -> list[Turn]:
    """Build the engine and measure turns; in a process of its own."""
    parallel = case.config.parallel
    become_rank(parallel, rank, case.port)
    # Imported late: DeepSpeed looks for GPUs when it is imported.
    import torch.distributed as dist

    from pretrain.main import Display
    from pretrain.parallel.engine import Engine
    from pretrain.parallel.groups import ProcessGroups
    from pretrain.parallel.mesh import Mesh
    from pretrain.run_folder import RunFolder

    groups = ProcessGroups.create(Mesh(parallel.tensor, parallel.data))
    engine = Engine.build(case.config, groups)
    folder = RunFolder.of(case.config.run)
    folder.path.mkdir(exist_ok=True)
    batch = packed_batch(1, case.config.trainer.sequence_length, 64, groups.data_rank)
    ways = [WITHOUT, *map(str, case.every)]
    turns: list[Turn] = []
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        redirect_stdout(nowhere),
        Display(case.config) if rank == 0 else nullcontext() as display,
    ):
        if display is not None:
            display.before_step(1)
        for way in ways:  # the first line starts the console and W&B
            _turn(case, engine, folder, batch, way, steps=_WARM_UP)
        if rank == 0:
            _await_wandb(folder)
        dist.barrier()
        for number in range(case.turns):
            # The order alternates, so that steady growth favours no way.
            for way in ways if number % 2 else reversed(ways):
                turns.append(_turn(case, engine, folder, batch, way, case.steps))
    dist.destroy_process_group()
    return turns


def _await_wandb(folder: RunFolder) -> None:
    """Wait for W&B's start, which takes seconds."""
    end = time.monotonic() + _START_SECONDS
    while not any(folder.path.glob("wandb/*run-*/*.wandb")):
        if time.monotonic() > end:
            raise RuntimeError(f"W&B did not start within {_START_SECONDS:g} s")
        time.sleep(0.1)


def _turn(case: Case, engine: Engine, folder: RunFolder, batch: PackedBatch, way: str, steps: int) -> Turn:
    import torch.distributed as dist

    from pretrain.telemetry.recorder import Recorder
    from pretrain.telemetry.sinks import read_metrics

    def timed() -> tuple[float, float]:
        dist.barrier()
        return time.perf_counter(), time.process_time()

    if way == WITHOUT:
        start = timed()
        for _ in range(steps):
            float(engine.step([batch], _LEARNING_RATE).loss)
        end, lines = timed(), 0
    else:
        trainer = replace(case.config.trainer, log_every=int(way), steps=_LAST)
        with closing(Recorder(replace(case.config, trainer=trainer), folder, engine, 0)) as recorder:
            before = len(read_metrics(folder.metrics))
            start = timed()
            for _ in range(steps):
                _recorded_step(engine, recorder, batch)
            end, lines = timed(), len(read_metrics(folder.metrics)) - before
    return Turn(way, end[0] - start[0], end[1] - start[1], lines)


def _recorded_step(engine: Engine, recorder: Recorder, batch: PackedBatch) -> None:
    """A step with every call of the recorder that `pretrain.trainer` makes."""
    recorder.before_step(engine.step_count + 1)
    recorder.add_batches([batch], wait_seconds=0.0)
    result = engine.step([batch], _LEARNING_RATE)
    discarded = torch.zeros_like(result.skipped)
    recorder.record_step(engine.step_count, result, _LEARNING_RATE, _EPOCHS, discarded)
