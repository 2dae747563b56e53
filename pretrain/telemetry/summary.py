"""The training's part of `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.config import TrainingConfig
from pretrain.run_folder import RunFolder, versions
from pretrain.run_layout import step_name
from pretrain.telemetry.sinks import read_metrics

_LOSSES = ("loss", "loss_action", "loss_image")
_NORMS = ("gradient_norm/", "parameter_norm/")
_SPEEDS = ("tokens_per_second", "tflops_per_rank", "mfu")


@dataclass(frozen=True, slots=True)
class Throughput:
    """Work done between two lines of metrics, over all ranks.

    Attributes:
        seconds: Time between the lines.
        flops: Floating-point operations of the model.
        tokens: Tokens without padding.
    """

    seconds: float
    flops: float
    tokens: int


def speeds(lines: Sequence[Throughput], peak_flops: float, ranks: int) -> dict[str, float]:
    """Mean `tokens_per_second`, `tflops_per_rank` and `mfu`; empty before the first line.

    Args:
        lines: One for each line of metrics; the first includes the warm-up and counts only if it is alone.
        peak_flops: Peak FLOP/s of all ranks.
        ranks: Number of ranks.
    """
    lines = lines[1:] or lines
    seconds = sum(line.seconds for line in lines)
    if not seconds:
        return {}
    rate = sum(line.flops for line in lines) / seconds
    tokens = sum(line.tokens for line in lines) / seconds
    return dict(zip(_SPEEDS, (tokens, rate / ranks / 1e12, rate / peak_flops), strict=True))


def write_summary(
    folder: RunFolder,
    config: TrainingConfig,
    progress: Mapping[str, Any],
    checkpoints: Sequence[int],
    speed: Mapping[str, float],
) -> None:
    """Write the training's keys of `summary.json`; keys written by others stay.

    Args:
        folder: Run folder.
        config: Settings of the run.
        progress: `steps`, `tokens`, `resumed_from`.
        checkpoints: Steps of the committed checkpoints.
        speed: Result of `speeds`; empty leaves the speed of an earlier start in place.
    """
    parallel = config.parallel
    records = read_metrics(folder.metrics, skip_damaged=True)  # a training that has ended is summed up
    folder.update_summary(
        {**dict.fromkeys(_SPEEDS), "evaluations": []},
        experiment=config.run.name,
        parallel={"tensor": parallel.tensor, "data": parallel.data, "zero_stage": parallel.zero_stage},
        recompute=config.model.recompute,
        world_size=parallel.tensor * parallel.data,
        **progress,
        loss=_first_and_last(records),
        norms=_newest_norms(records),
        validation=_newest_validation(records),
        **speed,
        checkpoints=[step_name(step) for step in checkpoints],
        versions=versions(),
    )


def _first_and_last(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """First and last losses: `{"first", "last", "action": {"first", "last"}, "image": {"first", "last"}}`."""
    losses: dict[str, Any] = {}
    for name in _LOSSES:
        values = [record[name] for record in records if record.get(name) is not None]
        pair = {"first": values[0], "last": values[-1]} if values else {"first": None, "last": None}
        losses |= pair if name == "loss" else {name.removeprefix("loss_"): pair}
    return losses


def _newest_norms(records: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Norms by group in the last line."""
    lines = [record for record in records if "event" not in record]
    newest = lines[-1] if lines else {}
    return {name: value for name, value in newest.items() if name.startswith(_NORMS)}


def _newest_validation(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The last validation: `{"step", "<split>/loss", ...}`."""
    validations = [record for record in records if record.get("event") == "validation"]
    return (
        {name: value for name, value in validations[-1].items() if name != "event"} if validations else None
    )
