"""The layout of a training for the nodes that are available. Pure: nodes in, a layout out.

Fewer data-parallel ranks process the same global batches in more micro-batches of at most the same size: what
is learned stays the same up to rounding, only a step takes longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.config import RootConfig
from cluster.resources.placement import Node, place_run
from cluster.resources.run_resources import RunResources
from data.errors import InputError


@dataclass(frozen=True, slots=True)
class ElasticLayout:
    """A layout that the nodes have room for.

    Attributes:
        config: The run's settings with this layout.
        resources: Resources of this layout.
        rank_nodes: Name of the node of each rank.
    """

    config: RootConfig
    resources: RunResources
    rank_nodes: tuple[str, ...]

    @property
    def data(self) -> int:
        """Data-parallel size."""
        return self.config.parallel.data


def largest_layout(config: RootConfig, resources: RunResources, nodes: Sequence[Node]) -> ElasticLayout:
    """The layout with the most data-parallel ranks that the nodes have room for.

    Args:
        config: The run's settings; `parallel.data` is the largest size, `cluster.least_data` the smallest
            (null: the same).
        resources: Resources of the run at its largest size.
        nodes: The available machines.

    Raises:
        InputError: Not even the smallest layout fits; the message has what it needs and what the nodes offer.
    """
    reason: InputError | None = None
    for data in _data_parallel_sizes(config):
        candidate = replace(resources, ranks=config.parallel.tensor * data)
        try:
            placements = place_run(candidate, config.parallel.tensor, nodes)
        except InputError as error:
            reason = error
            continue
        node_of_rank = {rank: each.node.name for each in placements for rank in each.ranks}
        rank_nodes = tuple(node_of_rank[rank] for rank in range(candidate.ranks))
        return ElasticLayout(with_data_parallel(config, data), candidate, rank_nodes)
    assert reason is not None
    raise reason


def with_data_parallel(config: RootConfig, data: int) -> RootConfig:
    """The same training at another data-parallel size: same global batch, micro-batches no larger."""
    if data == config.parallel.data:
        return config
    share = config.trainer.global_batch // config.parallel.data
    micro_batch = math.gcd(config.trainer.global_batch // data, config.trainer.micro_batch or share)
    return replace(
        config,
        parallel=replace(config.parallel, data=data),
        trainer=replace(config.trainer, micro_batch=micro_batch),
    )


def _data_parallel_sizes(config: RootConfig) -> Iterator[int]:
    """Data-parallel sizes that divide the global batch, largest first."""
    largest, hpz = config.parallel.data, config.parallel.hpz_partition_size
    smallest = config.cluster.least_data or largest
    for data in range(largest, smallest - 1, -1):
        if config.trainer.global_batch % data == 0 and data % hpz == 0:
            yield data
