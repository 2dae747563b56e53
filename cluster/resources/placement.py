"""Who runs where: a pure plan of the resources that a run takes, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.config import RootConfig
from data.errors import InputError


@dataclass(frozen=True, slots=True)
class Placement:
    """Resources of one run.

    Attributes:
        ranks: Training processes (`parallel.tensor * parallel.data`).
        cpus_per_rank: Logical CPUs of each.
        gpus_per_rank: GPUs of each, 0 or 1.
        evaluation_cpus: Logical CPUs kept for evaluations beside the training.
        evaluation_gpus: GPUs kept for their policies; whole ones, which evaluations may share.
    """

    ranks: int
    cpus_per_rank: int
    gpus_per_rank: int
    evaluation_cpus: int
    evaluation_gpus: int = 0

    @property
    def cpus(self) -> int:
        """Logical CPUs of training and evaluation together."""
        return self.ranks * self.cpus_per_rank + self.evaluation_cpus

    @property
    def gpus(self) -> int:
        """GPUs of training and evaluation together."""
        return self.ranks * self.gpus_per_rank + self.evaluation_gpus

    @property
    def rank_resources(self) -> dict[str, float]:
        """Resources of one training process, as Ray names them."""
        resources: dict[str, float] = {"CPU": self.cpus_per_rank}
        if self.gpus_per_rank:
            resources["GPU"] = self.gpus_per_rank
        return resources


def place(config: RootConfig, gpus_found: int) -> Placement:
    """Plan the resources of a run.

    Args:
        config: The run's settings.
        gpus_found: GPUs of this machine, used where `cluster.gpus_per_rank` is null.

    Raises:
        InputError: A size is not positive, or `cluster.cpus` is too small for the run.
    """
    placement = resources_of(config, gpus_found)
    if config.cluster.address is None:
        cpus = placement.cpus if config.cluster.cpus is None else config.cluster.cpus
        check_fits(placement, cpus=cpus, gpus=gpus_found, source="cluster.cpus")
    return placement


def resources_of(config: RootConfig, gpus_found: int) -> Placement:
    """What a run takes, wherever it runs.

    Args:
        config: The run's settings.
        gpus_found: GPUs of a machine, used where `cluster.gpus_per_rank` is null.

    Raises:
        InputError: A size is not positive.
    """
    for name, value in (
        ("parallel.tensor", config.parallel.tensor),
        ("parallel.data", config.parallel.data),
        ("cluster.cpus_per_rank", config.cluster.cpus_per_rank),
        ("eval.workers", config.eval.workers),
    ):
        if value < 1:
            raise InputError(f"{name}={value}, expected 1 or more")
    if config.cluster.least_data is not None and not 1 <= config.cluster.least_data <= config.parallel.data:
        raise InputError(
            f"cluster.least_data={config.cluster.least_data}, expected 1 to parallel.data="
            f"{config.parallel.data}, or null"
        )
    for name, value in (
        ("cluster.run.restarts", config.cluster.restarts),
        ("cluster.restart_delay", config.cluster.restart_delay),
        ("cluster.node_timeout", config.cluster.node_timeout),
    ):
        if value < 0:
            raise InputError(f"{name}={value}, expected 0 or more")
    if config.eval.gpus < 0 or (config.eval.gpus > 1 and config.eval.gpus % 1):
        raise InputError(f"eval.gpus={config.eval.gpus}, expected a share below 1 or a whole number")
    wanted = config.cluster.gpus_per_rank
    if wanted is not None and wanted not in (0, 1):
        raise InputError(f"cluster.gpus_per_rank={wanted}, expected 0, 1 or null (1 where there is a GPU)")
    return Placement(
        ranks=config.parallel.tensor * config.parallel.data,
        cpus_per_rank=config.cluster.cpus_per_rank,
        gpus_per_rank=min(1, gpus_found) if wanted is None else wanted,
        evaluation_cpus=config.eval.workers if config.eval.every > 0 else 0,
        evaluation_gpus=math.ceil(config.eval.gpus) if config.eval.every > 0 else 0,
    )


def check_fits(placement: Placement, cpus: float, gpus: float, source: str) -> None:
    """Refuse a run that does not fit, with both numbers.

    Args:
        placement: What the run takes.
        cpus: Logical CPUs there are.
        gpus: GPUs there are.
        source: Where the CPUs were counted, for the message.

    Raises:
        InputError: Too few CPUs or GPUs.
    """
    if placement.cpus > cpus:
        parts = f"{placement.ranks} training processes x {placement.cpus_per_rank}"
        if placement.evaluation_cpus:
            parts += f" + {placement.evaluation_cpus} for evaluation"
        raise InputError(
            f"{source} offers {cpus:g} CPUs to Ray, the run needs {placement.cpus} ({parts}); "
            "offer more, or lower parallel.tensor, parallel.data or eval.workers"
        )
    if placement.gpus > gpus:
        evaluation = f" + {placement.evaluation_gpus} for evaluation" if placement.evaluation_gpus else ""
        raise InputError(
            f"{gpus:g} GPUs found, the run needs {placement.gpus} ({placement.ranks} training processes, "
            f"one each{evaluation}); lower parallel.tensor or parallel.data, or train on CPUs with "
            "cluster.gpus_per_rank=0"
        )
