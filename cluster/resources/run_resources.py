"""Resources that a run requires: a pure function of its settings, checked before any process starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.config import RootConfig
from data.errors import InputError


@dataclass(frozen=True, slots=True)
class RunResources:
    """Resources of one run.

    Attributes:
        ranks: Training processes (`parallel.tensor * parallel.data`).
        cpus_per_rank: Logical CPUs of each.
        gpus_per_rank: GPUs of each, 0 or 1.
        evaluation_cpus: Logical CPUs reserved for evaluations beside the training.
        evaluation_gpus: GPUs reserved for their policies; whole ones, which evaluations may share.
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
    def per_rank(self) -> dict[str, float]:
        """Resources of one training process, under the names that Ray uses."""
        resources: dict[str, float] = {"CPU": self.cpus_per_rank}
        if self.gpus_per_rank:
            resources["GPU"] = self.gpus_per_rank
        return resources


def plan_resources(config: RootConfig, gpus_available: int) -> RunResources:
    """Resources of a run; on a private Ray also checked against what it offers.

    Args:
        config: The run's settings.
        gpus_available: GPUs of this machine; the default of `cluster.gpus_per_rank` depends on it.

    Raises:
        InputError: A setting is out of range, or `cluster.cpus` or the GPUs are too few for the run.
    """
    resources = required_resources(config, gpus_available)
    if config.cluster.address is None:
        cpus = resources.cpus if config.cluster.cpus is None else config.cluster.cpus
        check_fits(resources, cpus=cpus, gpus=gpus_available, source="cluster.cpus")
    return resources


def required_resources(config: RootConfig, gpus_available: int) -> RunResources:
    """Resources that a run requires, wherever it runs.

    Args:
        config: The run's settings.
        gpus_available: GPUs of a machine; the default of `cluster.gpus_per_rank` depends on it.

    Raises:
        InputError: A setting is out of range.
    """
    _check_settings(config)
    requested = config.cluster.gpus_per_rank
    evaluates = config.eval.every > 0
    return RunResources(
        ranks=config.parallel.tensor * config.parallel.data,
        cpus_per_rank=config.cluster.cpus_per_rank,
        gpus_per_rank=min(1, gpus_available) if requested is None else requested,
        evaluation_cpus=config.eval.workers if evaluates else 0,
        evaluation_gpus=math.ceil(config.eval.gpus) if evaluates else 0,
    )


def _check_settings(config: RootConfig) -> None:
    cluster, evaluation = config.cluster, config.eval
    for name, value, minimum in (
        ("parallel.tensor", config.parallel.tensor, 1),
        ("parallel.data", config.parallel.data, 1),
        ("cluster.cpus_per_rank", cluster.cpus_per_rank, 1),
        ("eval.workers", evaluation.workers, 1),
        ("cluster.restarts", cluster.restarts, 0),
        ("cluster.restart_delay", cluster.restart_delay, 0),
        ("cluster.node_timeout", cluster.node_timeout, 0),
    ):
        if value < minimum:
            raise InputError(f"{name}={value}, expected {minimum} or more")
    if cluster.least_data is not None and not 1 <= cluster.least_data <= config.parallel.data:
        raise InputError(
            f"cluster.least_data={cluster.least_data}, expected 1 to parallel.data={config.parallel.data}, "
            "or null"
        )
    if evaluation.gpus < 0 or (evaluation.gpus > 1 and evaluation.gpus % 1):
        raise InputError(f"eval.gpus={evaluation.gpus}, expected a share below 1 or a whole number")
    if cluster.gpus_per_rank not in (None, 0, 1):
        raise InputError(
            f"cluster.gpus_per_rank={cluster.gpus_per_rank}, expected 0, 1 or null (1 where there is a GPU)"
        )


def check_fits(resources: RunResources, cpus: float, gpus: float, source: str) -> None:
    """Refuse a run that needs more CPUs or GPUs than there are.

    Args:
        resources: Resources of the run.
        cpus: Logical CPUs available.
        gpus: GPUs available.
        source: Where the CPUs were counted, for the message.

    Raises:
        InputError: Too few CPUs or GPUs; the message has both numbers.
    """
    if resources.cpus > cpus:
        parts = f"{resources.ranks} training processes x {resources.cpus_per_rank}"
        if resources.evaluation_cpus:
            parts += f" + {resources.evaluation_cpus} for evaluation"
        raise InputError(
            f"{source} offers {cpus:g} CPUs to Ray, the run needs {resources.cpus} ({parts}); "
            "offer more, or lower parallel.tensor, parallel.data or eval.workers"
        )
    if resources.gpus > gpus:
        evaluation = f" + {resources.evaluation_gpus} for evaluation" if resources.evaluation_gpus else ""
        raise InputError(
            f"{gpus:g} GPUs found, the run needs {resources.gpus} ({resources.ranks} training processes, "
            f"one each{evaluation}); lower parallel.tensor or parallel.data, or train on CPUs with "
            "cluster.gpus_per_rank=0"
        )
