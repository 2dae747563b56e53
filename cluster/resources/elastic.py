"""The layout of a training for the nodes that there are. Pure: nodes in, a layout out.

Fewer data-parallel ranks take the same global batches in more micro-batches of at most the same size: what is
learned stays the same up to rounding, only a step takes longer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.config import RootConfig
from cluster.resources.node_assignment import Node, assign
from cluster.resources.placement import Placement
from data.errors import InputError


@dataclass(frozen=True, slots=True)
class Fit:
    """A layout that the nodes have room for.

    Attributes:
        config: The run's settings with this layout.
        placement: Its resources.
        rank_nodes: Name of the node of each rank.
    """

    config: RootConfig
    placement: Placement
    rank_nodes: tuple[str, ...]

    @property
    def data(self) -> int:
        """Data-parallel size."""
        return self.config.parallel.data


def largest_fit(config: RootConfig, placement: Placement, nodes: Sequence[Node]) -> Fit:
    """The layout with the most data-parallel ranks that the nodes have room for.

    Args:
        config: The run's settings; `parallel.data` is the most, `cluster.least_data` the least (null: the
            same).
        placement: The resources of all ranks.
        nodes: The machines that there are.

    Raises:
        InputError: Not even the smallest layout fits; says what was asked for and what the nodes offer.
    """
    refused: InputError | None = None
    for data in _sizes(config):
        smaller = with_data(config, data)
        resources = replace(placement, ranks=config.parallel.tensor * data)
        try:
            assignments = assign(resources, config.parallel.tensor, nodes)
        except InputError as error:
            refused = error
            continue
        nodes_of = {rank: each.node.name for each in assignments for rank in each.ranks}
        return Fit(smaller, resources, tuple(nodes_of[rank] for rank in range(resources.ranks)))
    assert refused is not None
    raise refused


def with_data(config: RootConfig, data: int) -> RootConfig:
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


def _sizes(config: RootConfig) -> Iterator[int]:
    """Data-parallel sizes that divide the global batch, largest first."""
    most, parallel = config.parallel.data, config.parallel
    least = config.cluster.least_data or most
    for data in range(most, least - 1, -1):
        if config.trainer.global_batch % data == 0 and data % parallel.hpz_partition_size == 0:
            yield data
