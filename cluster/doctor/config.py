"""Settings of `worldvla doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class DoctorConfig:
    """`worldvla doctor`: is this machine, or this Slurm allocation, fit for a run?

    Attributes:
        folder: Where runs are stored; on a cluster a folder that all nodes share.
        url: Data set to read from; null: none.
        all_reduce: Measure an all-reduce between the nodes of the allocation, or on this machine.
        render: Render a frame.
    """

    folder: str = "runs"
    url: str | None = None
    all_reduce: bool = True
    render: bool = True
