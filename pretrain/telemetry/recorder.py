"""What the training loop reports: a line of metrics every so many steps, events, and the run's summary."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.contracts import PackedBatch
from pretrain.config import TrainingConfig
from pretrain.hooks import StepHook
from pretrain.model.loss import means
from pretrain.planner.flops import Workload
from pretrain.run_folder import RunFolder
from pretrain.telemetry import ranks
from pretrain.telemetry.events import EventLog
from pretrain.telemetry.meters import peak_flops
from pretrain.telemetry.norms import GroupNorms
from pretrain.telemetry.sinks import JsonlSink, drop_after
from pretrain.telemetry.step_timer import StepTimer, StepTimes
from pretrain.telemetry.summary import Throughput, speeds, write_summary

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine, StepResult

_DISCARDABLE = 2  # newest steps that a rank may have done when it learns that they do not count


class Recorder(StepHook):
    """Counts and times the steps on every rank; rank 0 writes.

    Between two lines nothing waits for the device and nothing is communicated: numbers are read and summed
    over the ranks when a line is due. Every rank calls every method.

    Args:
        config: Settings of the run.
        folder: Folder of the run.
        engine: The engine in training; lines of steps that it has not done are dropped from `metrics.jsonl`.
        tokens: Tokens of the steps that it has done.
        sources: Names of the data sets, where their action losses are told apart.
    """

    def __init__(
        self,
        config: TrainingConfig,
        folder: RunFolder,
        engine: Engine,
        tokens: int,
        sources: Sequence[str] = (),
    ) -> None:
        self._config, self._folder, self._engine = config, folder, engine
        self._groups = groups = engine.groups
        self._last_line = engine.step_count  # step of the last line
        self._tokens, self._sources = tokens, sources
        self._rank_work = Workload()  # of this rank, not yet summed over the ranks
        self._line_work = Workload()  # of all ranks, since the last line
        self._newest_tokens: deque[int] = deque(maxlen=_DISCARDABLE)  # of this rank's newest steps
        self._checkpoint_stall = 0.0
        self._skipped = torch.zeros((), dtype=torch.int64, device=groups.device)
        self._throughput: list[Throughput] = []  # of each line
        self._norms = GroupNorms(engine)
        self._stragglers = ranks.StragglerDetector()
        self._hosts = ranks.gather_host_names()
        self._sink: JsonlSink | None = None
        self._events = EventLog(folder.events)
        if groups.rank == 0:
            drop_after(folder.metrics, self._last_line)
            self._sink = JsonlSink(folder.metrics)
        self._peak = self._sum_peak_flops()
        self._timer = StepTimer(groups.device)

    def event(self, name: str, **details: Any) -> None:
        """Write a line that is no step, `{"event": name, ...}`, also to `events.jsonl`."""
        if self._sink is not None:
            self._sink.write({"event": name, **details})
            self._events.write({"event": name, **details})

    def before_step(self, step: int) -> None:
        """Prepare the measurements of optimiser step `step` (from 1), before its batches are read."""
        if self._is_line_due(step):
            self._norms.request()
            self._timer.before_last_step()

    def add_batches(self, batches: Sequence[PackedBatch], wait_seconds: float) -> None:
        """Count the work of the next step, and the seconds of waiting for its batches."""
        work = sum((Workload.of(batch) for batch in batches), Workload())
        self._rank_work = self._rank_work + work
        self._newest_tokens.append(work.tokens)
        self._timer.add_data_wait(wait_seconds)

    def add_checkpoint_stall(self, seconds: float) -> None:
        """Count seconds for which a checkpoint blocked the training."""
        self._checkpoint_stall += seconds

    def total_tokens(self) -> int:
        """Tokens trained on since the beginning of the run, over all ranks."""
        self._sum_work()
        return self._tokens

    def record_step(
        self,
        step: int,
        result: StepResult,
        learning_rate: float,
        epochs: Mapping[str, float],
        discarded: Tensor,
    ) -> None:
        """Write the line of a step, if one is due; values that are not finite are null in it.

        Args:
            step: Number of the step, from 1.
            result: Result of the engine.
            learning_rate: Learning rate of the step.
            epochs: How often the windows of each stream (`<data set>/<kind>`) have been trained on, with it.
            discarded: Scalar bool on the device, the same on all ranks: whether the step does not count.
        """
        self._skipped += result.skipped
        if not self._is_line_due(step):
            return
        self._sum_work()
        loss = float(result.loss)  # waits for the device, so that the times below include its work
        times = self._timer.read(step - self._last_line)
        line: dict[str, Any] = {
            "step": step,
            "loss": _finite(loss),
            **{name: _finite(value) for name, value in means(result.sums.tolist(), self._sources).items()},
            "gradient_norm": _finite(float(result.gradient_norm)),
            **{name: _finite(value) for name, value in self._norms.read().items()},
            "learning_rate": learning_rate,
            "skipped_steps": int(self._skipped),
            "tokens": self._tokens,
            **{f"epoch/{name}": count for name, count in epochs.items()},
            **self._measure_speed(times),
            "step_time": times.step,
            **self._compare_ranks(step, times),
        }
        self._last_line, self._line_work = step, Workload()
        self._skipped.zero_()
        if self._sink is not None and not discarded:
            self._sink.write(line)

    def rewind(self, tokens: int) -> None:
        """Drop the lines after the engine's step, and count on from `tokens`: a checkpoint was loaded."""
        self._sum_work()
        self._tokens = tokens
        self._last_line, self._line_work = self._engine.step_count, Workload()
        if self._sink is not None:
            drop_after(self._folder.metrics, self._last_line)
        self._timer.restart()

    def discard_steps(self, count: int) -> None:
        """Forget the tokens and drop the lines of the newest steps (2 at most), which do not count."""
        tokens = torch.tensor(sum(list(self._newest_tokens)[-count:]), device=self._groups.device)
        dist.all_reduce(tokens, group=self._groups.data)
        self.rewind(self.total_tokens() - int(tokens))

    def paused(self) -> AbstractContextManager[None]:
        """A `with` block whose time belongs to no step."""
        return self._timer.paused()

    def summarise(self, step: int, resumed_from: str | None, checkpoints: Sequence[int]) -> None:
        """Write the training's part of `summary.json` (rank 0).

        Args:
            step: Optimiser steps done.
            resumed_from: Checkpoint that this start resumed from, if any.
            checkpoints: Steps of the committed checkpoints.
        """
        if self._sink is not None:
            progress = {"steps": step, "tokens": self._tokens, "resumed_from": resumed_from}
            speed = speeds(self._throughput, self._peak, self._groups.mesh.size)
            write_summary(self._folder, self._config, progress, checkpoints, speed)

    def close(self) -> None:
        """Close the file and remove the hooks in optimiser and torch."""
        self._norms.close()
        self._timer.close()
        if self._sink is not None:
            self._sink.close()

    def _is_line_due(self, step: int) -> bool:
        trainer = self._config.trainer
        return step % trainer.log_every == 0 or step in (trainer.steps, trainer.stop_after)

    def _measure_speed(self, times: StepTimes) -> dict[str, float]:
        flops = self._line_work.flops(self._config.model)
        self._throughput.append(Throughput(times.total, flops, self._line_work.tokens))
        return speeds(self._throughput[-1:], self._peak, self._groups.mesh.size)

    def _compare_ranks(self, step: int, times: StepTimes) -> dict[str, Any]:
        """The part of a line that compares the ranks; reports those that delay the others."""
        reading = ranks.read_rank(times, self._checkpoint_stall, self._groups.device)
        self._checkpoint_stall = 0.0
        readings = ranks.gather_readings(reading, self._groups.device)
        own_times = [reading.own_time for reading in readings]
        for rank, excess in self._stragglers.update(own_times, times.step):
            self.event(
                "straggler",
                step=step,
                rank=rank,
                host=self._hosts[rank],
                seconds_above_median=excess,
                data_wait=readings[rank].data_wait,
            )
        return ranks.summarise(readings, self._hosts, times.step)

    def _sum_work(self) -> None:
        """Sum the work over the data-parallel ranks; tensor-parallel peers share the same work."""
        counts = torch.tensor(astuple(self._rank_work), device=self._groups.device)
        dist.all_reduce(counts, group=self._groups.data)
        total = Workload(*(int(count) for count in counts))
        self._rank_work = Workload()
        self._line_work = self._line_work + total
        self._tokens += total.tokens

    def _sum_peak_flops(self) -> float:
        """Peak FLOP/s of all ranks, measured by all at the same time: on a CPU they share the cores."""
        dist.barrier()
        device = self._groups.device
        peak = torch.tensor(peak_flops(device, self._config.trainer.precision), dtype=torch.float64)
        peak = peak.to(device)
        dist.all_reduce(peak)
        return float(peak)


def _finite(value: float | None) -> float | None:
    """None for a value that is not finite, which JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None
