"""What the ranks took, beside each other: own time of a step, memory, and who holds up the others.

Each rank measures itself; when a line of metrics is due one sum of a small table over the ranks tells
everybody. A rank's own time is the step without the time in collectives (`pretrain.telemetry.waits`).
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
import psutil
import torch
import torch.distributed as dist

GIGABYTE = 1e9
SLOW = 0.2  # share of a step by which a straggler's own time is above the median of the ranks
LASTING = 3  # lines in a row before a straggler is named


@dataclass(frozen=True, slots=True)
class Reading:
    """What one rank measured since the last line; NaN where it cannot be known.

    Attributes:
        own_time: Seconds a step outside collectives.
        data_wait: Seconds a step in which it waited for its batches; part of `own_time`.
        checkpoint_stall: Seconds that checkpoints held it up.
        device_allocated: Most bytes that tensors took on its GPU.
        device_reserved: Most bytes that torch held there.
        host_resident: Bytes of its process in host memory.
    """

    own_time: float
    data_wait: float
    checkpoint_stall: float
    device_allocated: float
    device_reserved: float
    host_resident: float


def memory(device: torch.device) -> tuple[float, float, float]:
    """`Reading.device_allocated`, `device_reserved` and `host_resident`; the peaks start anew."""
    resident = float(psutil.Process().memory_info().rss)
    if device.type != "cuda":
        return float("nan"), float("nan"), resident
    peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    return float(peaks[0]), float(peaks[1]), resident


def host_names() -> list[str]:
    """The machine of each rank; every rank calls it."""
    names: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    return names


def everybody(mine: Reading, device: torch.device) -> list[Reading]:
    """The reading of each rank; every rank calls it."""
    table = torch.zeros(dist.get_world_size(), len(fields(Reading)), dtype=torch.float64)
    table[dist.get_rank()] = torch.tensor(astuple(mine), dtype=torch.float64)
    table = table.to(device)
    dist.all_reduce(table)
    return [Reading(*row) for row in table.tolist()]


def summarise(
    readings: Sequence[Reading], hosts: Sequence[str], step_time: float
) -> dict[str, float | int | str | None]:
    """The numbers of a line of metrics; None where no rank could measure.

    Args:
        readings: Of each rank.
        hosts: Of each rank.
        step_time: Seconds a step.
    """
    own = _column(readings, "own_time")
    found: dict[str, float | int | str | None] = {
        "data_wait": _most(_column(readings, "data_wait"))[0],
        "checkpoint_stall": _most(_column(readings, "checkpoint_stall"))[0],
    }
    percentiles = (
        [None] * 3 if np.isnan(own).all() else [float(v) for v in np.nanpercentile(own, (50, 90, 100))]
    )
    found |= dict(zip(("rank_time/p50", "rank_time/p90", "rank_time/max"), percentiles, strict=True))
    _, slowest = _most(own)
    found["rank_time/slowest_rank"] = slowest
    found["rank_time/slowest_host"] = None if slowest is None else hosts[slowest]
    found["peer_wait"] = None if slowest is None else max(0.0, step_time - float(np.nanmean(own)))
    for name in ("device_allocated", "device_reserved", "host_resident"):
        most, rank = _most(_column(readings, name))
        found[f"memory/{name}"] = None if most is None else most / GIGABYTE
        found[f"memory/{name}_rank"] = rank
    return found


class Stragglers:
    """Names the ranks for which the others wait, line after line; each once until it has caught up."""

    def __init__(self) -> None:
        self._lines: dict[int, int] = {}

    def new(self, own_times: Sequence[float], step_time: float) -> list[tuple[int, float]]:
        """Ranks to name now, with the seconds a step that they are above the median.

        Args:
            own_times: Seconds a step of each rank; NaN where unknown.
            step_time: Seconds a step.
        """
        times = np.asarray(own_times)
        above = times - (0.0 if np.isnan(times).all() else np.nanmedian(times))
        slow = {rank: float(above[rank]) for rank in np.flatnonzero(above > SLOW * step_time).tolist()}
        self._lines = {rank: self._lines.get(rank, 0) + 1 for rank in slow}
        return [(rank, excess) for rank, excess in slow.items() if self._lines[rank] == LASTING]


def _column(readings: Sequence[Reading], name: str) -> np.ndarray:
    return np.array([getattr(reading, name) for reading in readings])


def _most(values: np.ndarray) -> tuple[float | None, int | None]:
    """The largest value and whose it is."""
    if np.isnan(values).all():
        return None, None
    rank = int(np.nanargmax(values))
    return float(values[rank]), rank
