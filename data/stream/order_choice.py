"""Which order the windows come in, and what the local order needs of a rank's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.config import DataConfig
from data.stream.datasets import StreamDataset
from data.stream.episodes.time_steps import TimeSteps
from data.stream.order.plan import DataPlan, Order
from data.stream.samples import SampleForm

MEGABYTE = 2**20
FULL_ORDER_MEGABYTES = 512
"""Most megabytes of tokenised time steps of a split that `data.shuffle=auto` gives the full order.

It follows from the data and from settings that define a result, never from those that may differ between two
starts of a run (`data.memory_megabytes`).
"""


@dataclass(frozen=True, slots=True)
class OrderReport:
    """The order of a split, for people.

    Attributes:
        order: `full` or `local`.
        setting: `data.shuffle`.
        megabytes: Tokenised time steps of all episodes.
        episodes: Episodes that a place of a sequence draws from at a time: the most of any data set.
        of: Episodes that it draws from in an epoch.
        open_megabytes: Tokenised episodes that the places of a rank draw from at a time; of action and world
            samples apart, which draw from the same ones in the first epoch only.
        memory_megabytes: `data.memory_megabytes`.
    """

    order: Order
    setting: str
    megabytes: float
    episodes: float
    of: float
    open_megabytes: float
    memory_megabytes: int

    @property
    def warning(self) -> str | None:
        """Too little memory for the local order, and what to do; None: there is enough."""
        if self.order == "full" or self.open_megabytes <= self.memory_megabytes:
            return None
        return (
            f"the places of a rank draw from {self.open_megabytes:,.1f} MB of episodes at a time, but "
            f"data.memory_megabytes={self.memory_megabytes}, so episodes are read again and again; set "
            f"data.memory_megabytes={int(np.ceil(self.open_megabytes))}, or begin a run with smaller "
            "data.shuffle_episodes"
        )

    def __str__(self) -> str:
        """One line."""
        size = f"{self.megabytes:,.1f} MB of tokenised time steps"
        text = f"order of the windows: {self.order} (data.shuffle={self.setting}, {size})"
        if self.order == "full":
            return f"{text}; any episode may come next"
        return (
            f"{text}; a place of a sequence draws from {np.ceil(self.episodes):,.0f} of its "
            f"{np.ceil(self.of):,.0f} episodes at a time, the places of a rank from "
            f"{self.open_megabytes:,.1f} MB"
        )


def choose_order(config: DataConfig, datasets: Sequence[StreamDataset], forms: Sequence[SampleForm]) -> Order:
    """The order of `data.shuffle`; for `auto` the full one of data sets that are small once tokenised."""
    if config.shuffle != "auto":
        return config.shuffle
    small = sum(_sizes(config, datasets, forms)) <= FULL_ORDER_MEGABYTES * MEGABYTE
    return "full" if small else "local"


def report_order(
    config: DataConfig,
    plan: DataPlan,
    datasets: Sequence[StreamDataset],
    forms: Sequence[SampleForm],
    ranks: int,
) -> OrderReport:
    """Describe the order of a split.

    Args:
        config: The settings.
        plan: The order.
        datasets: Data sets of the split.
        forms: Sizes of the samples of each.
        ranks: Data-parallel ranks that share a step.
    """
    sizes, counts = _sizes(config, datasets, forms), [len(dataset.entries) for dataset in datasets]
    episodes = of = float(max(counts))
    opened = float(sum(sizes))
    if plan.order == "local":
        places = plan.layout.counts / ranks  # of a rank, on average
        strata = np.array(counts)[:, None] / np.maximum(plan.layout.counts, 1)
        pools = np.minimum(strata, config.shuffle_episodes) * (plan.layout.counts > 0)
        episodes, of = float(pools.max()), float(strata.flat[int(pools.argmax())])
        held = (places * pools).sum(axis=1)
        # Action and world places of a rank draw from at most all episodes.
        opened = float((np.minimum(held / np.array(counts), 1) * np.array(sizes)).sum())
    return OrderReport(
        plan.order,
        config.shuffle,
        sum(sizes) / MEGABYTE,
        episodes,
        of,
        opened / MEGABYTE,
        config.memory_megabytes,
    )


def _sizes(config: DataConfig, datasets: Sequence[StreamDataset], forms: Sequence[SampleForm]) -> list[int]:
    """Bytes of the tokenised time steps of each data set, with the variants of their frames."""
    return [
        int(dataset.steps.sum(dtype=np.int64)) * TimeSteps.empty(1, form, config.variants).nbytes
        for dataset, form in zip(datasets, forms, strict=True)
    ]
