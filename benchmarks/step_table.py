"""Rows and targets of `benchmarks.step`: MFU in two counts, and all layers extrapolated from two depths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.report import Column, Report
from benchmarks.step_run import Case, Measured
from pretrain.model.config import ModelConfig

COLUMNS = (
    Column("variant", "variant"),
    Column("seconds", "median", "s", digits=3),
    Column("spread", "spread", "%", digits=0),
    Column("tokens_per_second", "tokens", "1/s", digits=0),
    Column("teraflops", "a rank", "TFLOP/s", digits=2),
    Column("mfu", "MFU", "%", digits=1),
    Column("mfu_full", "full MFU", "%", digits=1),
    Column("held", "held", "GB", digits=1),
    Column("added", "added", "GB", digits=3),
    Column("relative", "speed", "x first", digits=2),
    Column("model", "model"),
    Column("layers", "layers"),
    Column("all_layers", "all layers"),
    Column("recompute", "recompute"),
    Column("extrapolated", "extrapolated"),
)
IN_FILE = ("model", "layers", "all_layers", "recompute", "extrapolated")  # besides the table's columns
MFU_TARGETS = {"mfu": ("causal", 53.0), "mfu_full": ("full", 60.0)}  # pairs that are counted, per cent


@dataclass(frozen=True, slots=True)
class Timed:
    """A variant that was measured, and the peak that its MFU is of."""

    case: Case
    measured: Measured
    peak: float

    @property
    def seconds(self) -> float:
        """Median of its steps."""
        return statistics.median(self.measured.seconds)


def unmeasured_row(case: Case) -> dict[str, Any]:
    """The row of a variant that is out of memory."""
    return dict.fromkeys((column.key for column in COLUMNS), None) | _about(case, None)


def row_of(timed: Timed, first: Timed) -> dict[str, Any]:
    """The row of a variant; its speed is against the model's first."""
    measured, seconds = timed.measured, timed.seconds
    return {
        **_about(timed.case, measured),
        **_speeds(timed, timed.case.config.model, seconds),
        "spread": 100 * (max(measured.seconds) - min(measured.seconds)) / seconds,
        "held": None if measured.held is None else measured.held / 1e9,
        "added": measured.added / 1e9,
        "relative": first.seconds / seconds,
    }


def extrapolated_row(earlier: Sequence[Timed], newest: Timed) -> dict[str, Any] | None:
    """The row of all layers, from the newest measurement and the one before it of the same variant.

    None where there is no other depth, the whole network was measured, or noise made the deeper one quicker.
    """
    same = [other for other in earlier if _kind(other) == _kind(newest)]
    if not same:
        return None
    less, more = sorted((same[-1], newest), key=_layers)
    whole = replace(more.case.config.model, layers=more.case.all_layers)
    if not _layers(less) < _layers(more) < whole.layers or less.seconds >= more.seconds:
        return None
    points = (_layers(less), less.seconds), (_layers(more), more.seconds)
    depths = f"{whole.layers}/{whole.layers} layers, from {_layers(less)} and {_layers(more)}"
    return (
        unmeasured_row(more.case)
        | {
            "variant": _variant(more.case, more.measured, depths),
            "layers": whole.layers,
            "extrapolated": True,
        }
        | _speeds(more, whole, extrapolated_seconds(*points, whole.layers))
    )


def extrapolated_seconds(less: tuple[int, float], more: tuple[int, float], layers: int) -> float:
    """Seconds of a step of so many layers on the line through two depths.

    Args:
        less: Layers and seconds of the shallower network.
        more: Of the deeper one.
        layers: Of the whole one.
    """
    of_a_layer = (more[1] - less[1]) / (more[0] - less[0])
    return more[1] + (layers - more[0]) * of_a_layer


def add_targets(report: Report, device: str) -> None:
    """MFU of 1B and 7B on one H100 or H200, with as many layers as the table has, in both counts."""
    hopper = device == "cuda" and any(name in torch.cuda.get_device_name() for name in ("H100", "H200"))
    for model in ("1b", "7b"):
        for key, (pairs, target) in MFU_TARGETS.items():
            best = best_mfu(report.rows, model, key) if hopper else None
            value = None if best is None else best[key]
            met = None if value is None else value >= target
            text = f"MFU of {model}, {pairs} attention counted, at least {target:.0f} %"
            report.target(f"{text} (H100 or H200, bf16, most layers of the table)", met, value)


def best_mfu(rows: Sequence[dict[str, Any]], model: str, key: str = "mfu") -> dict[str, Any] | None:
    """The row with the best MFU of a model's rows with most layers, extrapolated ones included.

    Args:
        rows: Of the table.
        model: Name in `configs/model`.
        key: `mfu` or `mfu_full`.
    """
    measured = [row for row in rows if row["model"] == model and row[key] is not None]
    most = max((row["layers"] for row in measured), default=0)
    return max((row for row in measured if row["layers"] == most), key=lambda row: row[key], default=None)


def _about(case: Case, measured: Measured | None) -> dict[str, Any]:
    model = case.config.model
    return {
        "variant": _variant(case, measured, f"{model.layers}/{case.all_layers} layers"),
        "model": case.model,
        "layers": model.layers,
        "all_layers": case.all_layers,
        "recompute": model.recompute,
        "extrapolated": False,
    }


def _variant(case: Case, measured: Measured | None, layers: str) -> str:
    model = case.config.model
    attention = model.attention if measured is None else measured.attention
    compiled = "" if model.compile == "auto" else f", compile {model.compile}"
    return f"{case.model} {layers}, {attention}, {model.recompute}{compiled}"


def _speeds(timed: Timed, model: ModelConfig, seconds: float) -> dict[str, Any]:
    work, square_pairs = timed.measured.work, timed.measured.square_pairs
    flops, parallel = work.flops(model), timed.case.config.parallel
    full = replace(work, pairs=square_pairs).flops(model)
    return {
        "seconds": seconds,
        "tokens_per_second": work.tokens / seconds,
        "teraflops": flops / seconds / (parallel.tensor * parallel.data) / 1e12,
        "mfu": 100 * flops / (seconds * timed.peak),
        "mfu_full": 100 * full / (seconds * timed.peak),
    }


def _kind(timed: Timed) -> tuple[str, str, str, str]:
    model = timed.case.config.model
    return timed.case.model, model.attention, model.recompute, model.compile


def _layers(timed: Timed) -> int:
    return timed.case.config.model.layers
