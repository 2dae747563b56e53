"""What the training loop reports: a line of metrics a step, and the run's summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from data.contracts import PackedBatch
from pretrain.checkpoint.manifest import committed
from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder, versions
from pretrain.telemetry.meters import Stopwatch, Work, peak_flops
from pretrain.telemetry.sinks import JsonlSink, drop_after, read_metrics

if TYPE_CHECKING:
    from pretrain.parallel.engine import StepResult
    from pretrain.parallel.groups import ProcessGroups

_KINDS = ("action", "image", "structure")  # the rows of `LossTerms.sums`
_LOSSES = ("loss", "loss_action", "loss_image")


class DivergedError(RuntimeError):
    """Loss or gradient norm is no longer a finite number."""


class Recorder:
    """Counts and times the steps on every rank; rank 0 writes.

    Between two lines nothing waits for the device: numbers are read from it when a line is due.

    Args:
        config: The run's settings.
        folder: The run's folder.
        groups: This rank's process groups.
        step: Optimiser steps done before; lines of later ones are dropped from `metrics.jsonl`.
        tokens: Tokens trained on before.
    """

    def __init__(
        self, config: TrainingConfig, folder: RunFolder, groups: ProcessGroups, step: int, tokens: int
    ) -> None:
        self._config = config
        self._folder = folder
        self._groups = groups
        self._step = step
        self._tokens = tokens
        self._work = Work()  # of this rank, not yet added up over the ranks
        self._line = Work()  # of all ranks, since the last line
        self._watch = Stopwatch()
        self._stall = 0.0
        self._timed: list[tuple[float, float, int]] = []  # seconds, FLOPs, tokens of each line
        self._sink: JsonlSink | None = None
        if groups.rank == 0:
            drop_after(folder.metrics, step)
            self._sink = JsonlSink(folder.metrics)
        dist.barrier()  # all ranks measure at the same time: on a CPU they share the cores
        peak = torch.tensor(peak_flops(groups.device, config.trainer.precision), dtype=torch.float64)
        peak = peak.to(groups.device)
        dist.all_reduce(peak)
        self._peak = float(peak)
        self._watch.read()

    def event(self, name: str, **details: Any) -> None:
        """Write a line that is no step: `{"event": name, ...}`."""
        if self._sink is not None:
            self._sink.write({"event": name, **details})

    def fed(self, batches: Sequence[PackedBatch], seconds: float) -> None:
        """Count the work of a step, and the seconds that were spent waiting for it."""
        self._work = sum((Work.of(batch) for batch in batches), self._work)
        self._watch.waited(seconds)

    def saved(self, stall: float) -> None:
        """Count seconds for which a checkpoint held up the training."""
        self._stall += stall

    def total_tokens(self) -> int:
        """Tokens trained on since the beginning of the run, over all ranks; every rank calls it."""
        self._add_up()
        return self._tokens

    def record(self, step: int, result: StepResult, learning_rate: float) -> None:
        """Write the line of a step, if one is due; every rank calls it.

        Raises:
            DivergedError: As `check_finite`.
        """
        trainer = self._config.trainer
        if step % trainer.log_every and step != trainer.steps and step != trainer.stop_after:
            return
        self._add_up()
        loss, norm = check_finite(step, result)  # waits for the device: what follows is timed right
        seconds, waited = self._watch.read()
        steps, work = step - self._step, self._line
        flops = work.flops(self._config.model)
        self._step, self._line = step, Work()
        self._timed.append((seconds, flops, work.tokens))
        if self._sink is not None:
            self._sink.write(
                {
                    "step": step,
                    "loss": loss,
                    **_by_kind(result.sums.tolist()),
                    "gradient_norm": norm,
                    "learning_rate": learning_rate,
                    "tokens": self._tokens,
                    "tokens_per_second": work.tokens / seconds,
                    "mfu": flops / (seconds * self._peak),
                    "step_time": seconds / steps,
                    "data_wait": waited / steps,
                    "checkpoint_stall": self._stall,
                }
            )
        self._stall = 0.0

    def summarise(self, step: int, resumed_from: str | None) -> None:
        """Write the training's part of `summary.json` (rank 0)."""
        if self._sink is None:
            return
        parallel = self._config.parallel
        timed = self._timed[1:] or self._timed  # the first line has the warm-up in it
        seconds = sum(line[0] for line in timed)
        speed: dict[str, float] = {}
        if seconds:
            speed["tokens_per_second"] = sum(line[2] for line in timed) / seconds
            speed["mfu"] = sum(line[1] for line in timed) / (seconds * self._peak)
        before = self._folder.read_summary()
        self._folder.update_summary(
            experiment=self._config.run.name,
            parallel={"tensor": parallel.tensor, "data": parallel.data, "zero_stage": parallel.zero_stage},
            world_size=self._groups.mesh.size,
            steps=step,
            tokens=self._tokens,
            loss=_first_and_last(read_metrics(self._folder.metrics)),
            **{"tokens_per_second": None, "mfu": None, **_kept(before), **speed},
            checkpoints=[path.name for path in committed(self._folder.checkpoints)],
            resumed_from=resumed_from,
            evaluations=before.get("evaluations", []),
            versions=versions(),
        )

    def close(self) -> None:
        """Close the file."""
        if self._sink is not None:
            self._sink.close()

    def _add_up(self) -> None:
        """Add this rank's work to everybody's; tensor-parallel peers do the same work once."""
        mine = self._work
        counts = torch.tensor([mine.tokens, mine.labelled, mine.pairs], device=self._groups.device)
        dist.all_reduce(counts, group=self._groups.data)
        work = Work(*(int(count) for count in counts))
        self._work = Work()
        self._line = self._line + work
        self._tokens += work.tokens


def check_finite(step: int, result: StepResult) -> tuple[float, float]:
    """Loss and gradient norm of a step as numbers; waits for the device.

    Raises:
        DivergedError: One is not finite; they are the same on every rank, so every rank raises it.
    """
    loss, norm = float(result.loss), float(result.gradient_norm)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise DivergedError(
            f"step {step}: loss {loss}, gradient norm {norm}: the training diverged and ends here, without "
            "a checkpoint of this step; begin another run.name with a smaller optim.lr and "
            "checkpointing.start_from=the newest checkpoint"
        )
    return loss, norm


def _by_kind(sums: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Mean loss and accuracy of each kind of label; None where the step had none of it."""
    found: dict[str, float | None] = {}
    for kind, (cross_entropy, count, correct) in zip(_KINDS, sums, strict=True):
        found[f"loss_{kind}"] = cross_entropy / count if count else None
        found[f"accuracy_{kind}"] = correct / count if count else None
    return found


def _first_and_last(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`{"first", "last", "action": {"first", "last"}, "image": {"first", "last"}}` of a run's losses."""
    found: dict[str, Any] = {}
    for name in _LOSSES:
        values = [record[name] for record in records if record.get(name) is not None]
        pair = {"first": values[0], "last": values[-1]} if values else {"first": None, "last": None}
        found |= pair if name == "loss" else {name.removeprefix("loss_"): pair}
    return found


def _kept(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Speeds of an earlier start, for one that had nothing left to train."""
    return {key: summary[key] for key in ("tokens_per_second", "mfu") if key in summary}
