"""Measurements of all ranks side by side: own time of a step, memory, and which rank delays the others.

Each rank measures itself; when a line of metrics is due, one sum of a small table over the ranks gives every
rank all readings. A rank's own time is the step without the time in collectives (`pretrain.telemetry.waits`).
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import psutil
import torch
import torch.distributed as dist

from pretrain.telemetry.step_timer import StepTimes

GIGABYTE = 1e9
STRAGGLER_SHARE = 0.2  # share of a step by which a straggler's own time exceeds the median of the ranks
STRAGGLER_LINES = 3  # consecutive lines of metrics before a straggler is reported


@dataclass(frozen=True, slots=True)
class RankReading:
    """What one rank measured since the last line; NaN where it cannot be measured.

    Attributes:
        own_time: Seconds a step outside collectives.
        data_wait: Seconds a step of waiting for batches; part of `own_time`.
        checkpoint_stall: Seconds for which checkpoints blocked the training.
        device_allocated: Peak of bytes in tensors on its GPU.
        device_reserved: Peak of bytes reserved by torch on its GPU.
        host_resident: Bytes of its process in host memory.
    """

    own_time: float
    data_wait: float
    checkpoint_stall: float
    device_allocated: float
    device_reserved: float
    host_resident: float


def read_rank(times: StepTimes, checkpoint_stall: float, device: torch.device) -> RankReading:
    """The reading of this rank; the peaks of GPU memory start anew."""
    own_time = math.nan if times.peer_wait is None else max(0.0, times.step - times.peer_wait)
    resident = float(psutil.Process().memory_info().rss)
    allocated = reserved = math.nan
    if device.type == "cuda":
        allocated = float(torch.cuda.max_memory_allocated(device))
        reserved = float(torch.cuda.max_memory_reserved(device))
        torch.cuda.reset_peak_memory_stats(device)
    return RankReading(own_time, times.data_wait, checkpoint_stall, allocated, reserved, resident)


def gather_host_names() -> list[str]:
    """The host name of each rank; every rank calls this."""
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    return names


def gather_readings(reading: RankReading, device: torch.device) -> list[RankReading]:
    """The reading of each rank; every rank calls this with its own."""
    table = torch.zeros(dist.get_world_size(), len(fields(RankReading)), dtype=torch.float64)
    table[dist.get_rank()] = torch.tensor(astuple(reading), dtype=torch.float64)
    table = table.to(device)
    dist.all_reduce(table)
    return [RankReading(*row) for row in table.tolist()]


def summarise(
    readings: Sequence[RankReading], hosts: Sequence[str], step_time: float
) -> dict[str, float | int | str | None]:
    """The part of a line of metrics that compares ranks; None where no rank could measure.

    Args:
        readings: Reading of each rank.
        hosts: Host name of each rank.
        step_time: Seconds a step.
    """
    own_times = _column(readings, "own_time")
    values: dict[str, float | int | str | None] = {
        "data_wait": _largest(_column(readings, "data_wait"))[0],
        "checkpoint_stall": _largest(_column(readings, "checkpoint_stall"))[0],
    }
    percentiles: list[float | None] = [None] * 3
    if not np.isnan(own_times).all():
        percentiles = [float(value) for value in np.nanpercentile(own_times, (50, 90, 100))]
    values |= dict(zip(("rank_time/p50", "rank_time/p90", "rank_time/max"), percentiles, strict=True))
    _, slowest = _largest(own_times)
    values["rank_time/slowest_rank"] = slowest
    values["rank_time/slowest_host"] = None if slowest is None else hosts[slowest]
    values["peer_wait"] = None if slowest is None else max(0.0, step_time - float(np.nanmean(own_times)))
    for name in ("device_allocated", "device_reserved", "host_resident"):
        most, rank = _largest(_column(readings, name))
        values[f"memory/{name}"] = None if most is None else most / GIGABYTE
        values[f"memory/{name}_rank"] = rank
    return values


class StragglerDetector:
    """Detects ranks that delay the others in consecutive lines; reports each once until it has caught up."""

    def __init__(self) -> None:
        self._slow_lines: dict[int, int] = {}

    def update(self, own_times: Sequence[float], step_time: float) -> list[tuple[int, float]]:
        """Ranks to report now, with the seconds a step by which they exceed the median.

        Args:
            own_times: Seconds a step of each rank; NaN where not measured.
            step_time: Seconds a step.
        """
        times = np.asarray(own_times)
        excess = times - (0.0 if np.isnan(times).all() else np.nanmedian(times))
        slow_ranks = np.flatnonzero(excess > STRAGGLER_SHARE * step_time).tolist()
        self._slow_lines = {rank: self._slow_lines.get(rank, 0) + 1 for rank in slow_ranks}
        return [
            (rank, float(excess[rank])) for rank in slow_ranks if self._slow_lines[rank] == STRAGGLER_LINES
        ]


def _column(readings: Sequence[RankReading], name: str) -> np.ndarray:
    return np.array([getattr(reading, name) for reading in readings])


def _largest(values: np.ndarray) -> tuple[float | None, int | None]:
    """The largest value and its rank."""
    if np.isnan(values).all():
        return None, None
    rank = int(np.nanargmax(values))
    return float(values[rank]), rank
