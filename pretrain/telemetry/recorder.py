"""What the training loop reports: a line of metrics every so many steps, events, and the run's summary."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.contracts import PackedBatch
from pretrain.config import TrainingConfig
from pretrain.model.loss import means
from pretrain.phases import phase
from pretrain.run_folder import RunFolder
from pretrain.telemetry import ranks
from pretrain.telemetry.events import EventLog
from pretrain.telemetry.meters import Stopwatch, Work, peak_flops
from pretrain.telemetry.norms import GroupNorms
from pretrain.telemetry.profiling import StepProfiler
from pretrain.telemetry.sinks import JsonlSink, drop_after
from pretrain.telemetry.summary import Timed, speeds, write_summary
from pretrain.telemetry.waits import peer_wait

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine, StepResult
    from pretrain.validation import Validation

_NEWEST = 2  # steps that a rank may have done when it learns that they do not count


class Recorder:
    """Counts and times the steps on every rank; rank 0 writes.

    Between two lines nothing waits for the device and nothing is sent: numbers are read and added up over
    the ranks when a line is due. Every rank calls every method.

    Args:
        config: The run's settings.
        folder: The run's folder.
        engine: What is trained; lines of steps that it has not done are dropped from `metrics.jsonl`.
        tokens: Tokens trained on before.
    """

    def __init__(self, config: TrainingConfig, folder: RunFolder, engine: Engine, tokens: int) -> None:
        self._config = config
        self._folder = folder
        self._engine = engine
        self._groups = groups = engine.groups
        self._step = engine.step_count
        self._tokens = tokens
        self._work = Work()  # of this rank, not yet added up over the ranks
        self._line = Work()  # of all ranks, since the last line
        self._watch = Stopwatch()
        self._newest: deque[int] = deque(maxlen=_NEWEST)  # tokens of this rank's newest steps
        self._stall = 0.0
        self._skipped = torch.zeros((), dtype=torch.int64, device=groups.device)
        self._timed: list[Timed] = []  # of each line
        self._norms = GroupNorms(engine)
        self._waits = peer_wait(groups.device)
        self._stragglers = ranks.Stragglers()
        self._hosts = ranks.host_names()
        profiled = config.telemetry.profile and groups.rank == 0
        self._profiler = StepProfiler(folder.profile, config.telemetry.profile_steps if profiled else ())
        self._sink: JsonlSink | None = None
        self._events = EventLog(folder.events)
        if groups.rank == 0:
            drop_after(folder.metrics, self._step)
            self._sink = JsonlSink(folder.metrics)
        dist.barrier()  # all ranks measure at the same time: on a CPU they share the cores
        peak = torch.tensor(peak_flops(groups.device, config.trainer.precision), dtype=torch.float64)
        peak = peak.to(groups.device)
        dist.all_reduce(peak)
        self._peak = float(peak)
        self._watch.read()
        self._waits.read(1)

    def event(self, name: str, **details: Any) -> None:
        """Write a line that is no step, `{"event": name, ...}`, also to `events.jsonl`."""
        if self._sink is not None:
            self._sink.write({"event": name, **details})
            self._events.write({"event": name, **details})

    def begin(self) -> None:
        """The next step begins; call it before its batches are asked for."""
        step = self._engine.step_count + 1
        self._profiler.begin(step)
        if self._due(step):
            self._norms.want()
            self._waits.begin()

    def end(self) -> None:
        """All that belongs to the step is done, its checkpoint too."""
        if (trace := self._profiler.end()) is not None:
            self.event("profile", step=self._engine.step_count, trace=str(trace))

    def fed(self, batches: Sequence[PackedBatch], seconds: float) -> None:
        """Count the work of a step, and the seconds that were spent waiting for it."""
        work = sum((Work.of(batch) for batch in batches), Work())
        self._work = self._work + work
        self._newest.append(work.tokens)
        self._watch.waited(seconds)

    def saved(self, stall: float) -> None:
        """Count seconds for which a checkpoint held up the training."""
        self._stall += stall

    def total_tokens(self) -> int:
        """Tokens trained on since the beginning of the run, over all ranks."""
        self._add_up()
        return self._tokens

    def record(
        self,
        step: int,
        result: StepResult,
        learning_rate: float,
        epochs: Mapping[str, float],
        void: Tensor,
    ) -> None:
        """Write the line of a step, if one is due; what is not finite is null there.

        Args:
            step: Its number, from 1.
            result: Of the engine.
            learning_rate: Of the step.
            epochs: How often the windows of each stream (`<data set>/<kind>`) have been trained on, with it.
            void: Scalar bool on the device, the same on all ranks: whether the step does not count.
        """
        self._skipped += result.skipped
        if not self._due(step):
            return
        self._add_up()
        loss = float(result.loss)  # waits for the device: what follows is timed right
        seconds, waited = self._watch.read()
        steps, work = step - self._step, self._line
        flops = work.flops(self._config.model)
        self._step, self._line = step, Work()
        self._timed.append(Timed(seconds, flops, work.tokens))
        world = self._groups.mesh.size
        line: dict[str, Any] = {
            "step": step,
            "loss": _finite(loss),
            **{name: _finite(value) for name, value in means(result.sums.tolist()).items()},
            "gradient_norm": _finite(float(result.gradient_norm)),
            **{name: _finite(value) for name, value in self._norms.read().items()},
            "learning_rate": learning_rate,
            "skipped_steps": int(self._skipped),
            "tokens": self._tokens,
            **{f"epoch/{name}": count for name, count in epochs.items()},
            **speeds(self._timed[-1:], self._peak, world),
            "step_time": seconds / steps,
        }
        self._skipped.zero_()
        line |= self._compare_ranks(step, seconds / steps, waited / steps, self._waits.read(steps))
        if self._sink is not None and not void:
            self._sink.write(line)

    def rewind(self, tokens: int) -> None:
        """The engine went back to a checkpoint: drop the lines after it, and count on from its tokens."""
        self._add_up()
        self._tokens = tokens
        self._step, self._line = self._engine.step_count, Work()
        if self._sink is not None:
            drop_after(self._folder.metrics, self._step)
        self._watch.read()

    def take_back(self, steps: int) -> None:
        """The newest steps (2 at most) do not count: forget their tokens, and drop their lines."""
        tokens = torch.tensor(sum(list(self._newest)[-steps:]), device=self._groups.device)
        dist.all_reduce(tokens, group=self._groups.data)
        self.rewind(self.total_tokens() - int(tokens))

    def validate(self, step: int, validation: Validation) -> None:
        """Measure the held-out splits, outside the time of training, and write an event."""
        start = time.perf_counter()
        with phase("validation"), self._waits.paused():
            values = validation.measure(self._engine)
        seconds = time.perf_counter() - start
        self._watch.paused(seconds)
        self.event("validation", step=step, seconds=seconds, **values)

    def summarise(self, step: int, resumed_from: str | None, checkpoints: Sequence[int]) -> None:
        """Write the training's part of `summary.json` (rank 0).

        Args:
            step: Optimiser steps done.
            resumed_from: Checkpoint that this start went on from, if any.
            checkpoints: Steps of the committed checkpoints.
        """
        if self._sink is not None:
            progress = {"steps": step, "tokens": self._tokens, "resumed_from": resumed_from}
            speed = speeds(self._timed, self._peak, self._groups.mesh.size)
            write_summary(self._folder, self._config, progress, checkpoints, speed)

    def close(self) -> None:
        """Close the file, write an unfinished trace, give back what was hooked."""
        if (trace := self._profiler.close()) is not None:
            self.event("profile", step=self._engine.step_count, trace=str(trace))
        self._norms.close()
        self._waits.close()
        if self._sink is not None:
            self._sink.close()

    def _due(self, step: int) -> bool:
        trainer = self._config.trainer
        return step % trainer.log_every == 0 or step in (trainer.steps, trainer.stop_after)

    def _compare_ranks(
        self, step: int, step_time: float, data_wait: float, peers: float | None
    ) -> dict[str, Any]:
        """The part of a line that is of all ranks; names those that hold up the others."""
        own = math.nan if peers is None else max(0.0, step_time - peers)
        mine = ranks.Reading(own, data_wait, self._stall, *ranks.memory(self._groups.device))
        self._stall = 0.0
        readings = ranks.everybody(mine, self._groups.device)
        for rank, excess in self._stragglers.new([reading.own_time for reading in readings], step_time):
            found = readings[rank]
            self.event(
                "straggler",
                step=step,
                rank=rank,
                host=self._hosts[rank],
                seconds_above_median=excess,
                data_wait=found.data_wait,
            )
        return ranks.summarise(readings, self._hosts, step_time)

    def _add_up(self) -> None:
        """Add this rank's work to everybody's; tensor-parallel peers do the same work once."""
        mine = self._work
        counts = torch.tensor([mine.tokens, mine.labelled, mine.pairs], device=self._groups.device)
        dist.all_reduce(counts, group=self._groups.data)
        work = Work(*(int(count) for count in counts))
        self._work = Work()
        self._line = self._line + work
        self._tokens += work.tokens


def _finite(value: float | None) -> float | None:
    """None for what is not finite, which JSON has no number for."""
    return value if value is not None and math.isfinite(value) else None
