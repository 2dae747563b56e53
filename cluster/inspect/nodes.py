"""Which node would run what."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from cluster.inspect.config import InspectClusterConfig
from cluster.resources.placement import Node, NodePlacement, place_run
from cluster.resources.run_resources import RunResources, required_resources
from data.errors import InputError


def place_on_nodes(config: InspectClusterConfig) -> tuple[RunResources, list[NodePlacement]]:
    """The resources of a run, and where they are on the nodes that the settings describe.

    Raises:
        InputError: The run does not fit the nodes, or a setting is out of range.
    """
    for name, value, minimum in (
        ("nodes", config.nodes, 0 if config.cpu_nodes else 1),
        ("cpu_nodes", config.cpu_nodes, 0),
        ("cpus_per_node", config.cpus_per_node, 1),
    ):
        if value < minimum:
            raise InputError(f"{name}={value}, expected {minimum} or more; correct the setting")
    gpus = config.cluster.gpus_per_node if config.cluster.gpus_per_rank != 0 else 0
    nodes = [Node(f"node{number:03d}", config.cpus_per_node, gpus) for number in range(config.nodes)]
    nodes += [Node(f"cpu{number:03d}", config.cpus_per_node, 0) for number in range(config.cpu_nodes)]
    resources = required_resources(config, gpus)
    return resources, place_run(resources, config.parallel.tensor, nodes)


TABLE_WIDTH = 100  # columns that the table needs; it is not folded to a narrow terminal


def placement_content(placement: NodePlacement) -> dict[str, object]:
    """One node as `--json` prints it."""
    return {
        "node": placement.node.name,
        "ranks": list(placement.ranks),
        "evaluation_cpus": placement.evaluation_cpus,
        "cpus_left": placement.cpus_left,
        "evaluation_gpus": placement.evaluation_gpus,
        "gpus_left": placement.gpus_left,
    }


def placement_table(
    config: InspectClusterConfig, resources: RunResources, placements: Sequence[NodePlacement]
) -> Table:
    """One line per node."""
    tensor, data = config.parallel.tensor, config.parallel.data
    table = Table(
        title=f"tensor {tensor} x data {data} = {resources.ranks} ranks of {resources.cpus_per_rank} CPUs "
        f"and {resources.gpus_per_rank} GPUs",
        box=box.SIMPLE_HEAD,
    )
    for name in ("node", "ranks", "evaluation CPUs", "evaluation GPUs", "CPUs left", "GPUs left"):
        table.add_column(name, justify="left" if name in ("node", "ranks") else "right", no_wrap=True)
    for each in placements:
        ranks = f"{each.ranks[0]} to {each.ranks[-1]}" if each.ranks else "none"
        left = f"{each.cpus_left:g}", f"{each.gpus_left:g}"
        evaluation = str(each.evaluation_cpus), str(each.evaluation_gpus)
        table.add_row(each.node.name, ranks, *evaluation, *left)
    return table
