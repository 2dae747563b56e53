"""`worldvla inspect cluster`: which node would run what."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich import box
from rich.table import Table

from cluster.inspect.config import InspectClusterConfig
from cluster.invocation import Invocation
from cluster.resources.node_assignment import Assignment, Node, assign
from cluster.resources.placement import Placement, resources_of
from data.errors import InputError


def inspect_cluster(config: InspectClusterConfig, call: Invocation) -> None:
    """`worldvla inspect cluster`.

    Raises:
        InputError: The run does not fit the nodes, or a setting cannot be.
    """
    for name, value, least in (
        ("nodes", config.nodes, 0 if config.cpu_nodes else 1),
        ("cpu_nodes", config.cpu_nodes, 0),
        ("cpus_per_node", config.cpus_per_node, 1),
    ):
        if value < least:
            raise InputError(f"{name}={value}, expected {least} or more; correct the setting")
    gpus = config.cluster.gpus_per_node if config.cluster.gpus_per_rank != 0 else 0
    nodes = [Node(f"node{number:03d}", config.cpus_per_node, gpus) for number in range(config.nodes)]
    nodes += [Node(f"cpu{number:03d}", config.cpus_per_node, 0) for number in range(config.cpu_nodes)]
    placement = resources_of(config, gpus)
    found = assign(placement, config.parallel.tensor, nodes)
    if call.json:
        print(json.dumps({"placement": asdict(placement), "nodes": [_row(each) for each in found]}, indent=2))
        return
    call.console.print(_table(config, placement, found))


def _row(each: Assignment) -> dict[str, object]:
    return {
        "node": each.node.name,
        "ranks": list(each.ranks),
        "evaluation_cpus": each.evaluation_cpus,
        "cpus_left": each.cpus_left,
        "evaluation_gpus": each.evaluation_gpus,
        "gpus_left": each.gpus_left,
    }


def _table(config: InspectClusterConfig, placement: Placement, found: list[Assignment]) -> Table:
    tensor, data = config.parallel.tensor, config.parallel.data
    table = Table(
        title=f"tensor {tensor} x data {data} = {placement.ranks} ranks of {placement.cpus_per_rank} CPUs "
        f"and {placement.gpus_per_rank} GPUs",
        box=box.SIMPLE_HEAD,
    )
    for name in ("node", "ranks", "evaluation CPUs", "evaluation GPUs", "CPUs left", "GPUs left"):
        table.add_column(name, justify="left" if name in ("node", "ranks") else "right", no_wrap=True)
    for each in found:
        ranks = f"{each.ranks[0]} to {each.ranks[-1]}" if each.ranks else "none"
        left = f"{each.cpus_left:g}", f"{each.gpus_left:g}"
        evaluation = str(each.evaluation_cpus), str(each.evaluation_gpus)
        table.add_row(each.node.name, ranks, *evaluation, *left)
    return table
