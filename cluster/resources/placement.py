"""Which node runs what: training ranks first, evaluations in what is left. Pure: nodes in, a placement out.

Ranks are numbered node by node, and a node gets a multiple of `parallel.tensor` of them, so that
tensor-parallel peers, which communicate the most, share a node. Two nodes of five CPUs, tensor 2, data 2, one
CPU per rank, two for evaluation::

    n0   ranks 0 1 2 3   one CPU left
    n1                   evaluation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.resources.run_resources import RunResources
from data.errors import InputError


@dataclass(frozen=True, slots=True)
class Node:
    """A machine.

    Attributes:
        name: Its name in Slurm, or its id in Ray.
        cpus: Logical CPUs that it offers.
        gpus: GPUs that it offers.
    """

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class NodePlacement:
    """What one node runs.

    Attributes:
        node: The machine.
        ranks: Training ranks, ascending.
        evaluation_cpus: Logical CPUs of evaluations.
        cpus: Logical CPUs of the ranks.
        gpus: GPUs of the ranks.
        evaluation_gpus: GPUs of evaluations.
    """

    node: Node
    ranks: tuple[int, ...] = ()
    evaluation_cpus: int = 0
    cpus: int = 0
    gpus: int = 0
    evaluation_gpus: int = 0

    @property
    def cpus_left(self) -> float:
        """Logical CPUs that are not used."""
        return self.node.cpus - self.cpus - self.evaluation_cpus

    @property
    def gpus_left(self) -> float:
        """GPUs that are not used."""
        return self.node.gpus - self.gpus - self.evaluation_gpus


def place_run(resources: RunResources, tensor: int, nodes: Sequence[Node]) -> list[NodePlacement]:
    """Give every rank and the evaluations a node.

    Nodes with the most GPUs (on CPUs: with the most CPUs) get ranks first. An evaluation is one process group
    on one node: of the nodes with enough CPUs and GPUs left the one with the most CPUs, nodes without ranks
    before others.

    Args:
        resources: Resources of the run.
        tensor: `parallel.tensor`.
        nodes: The machines.

    Returns:
        One entry per node, in the order of `nodes`.

    Raises:
        InputError: The run does not fit; the message has what it needs and what the nodes offer.
    """
    placements = {node.name: NodePlacement(node) for node in nodes}
    if len(placements) != len(nodes):
        raise InputError("two nodes have one name; name each node once")
    first = 0
    for node in sorted(nodes, key=lambda node: (-node.gpus, -node.cpus)):
        count = min(_capacity(resources, tensor, node), resources.ranks - first)
        placements[node.name] = NodePlacement(
            node,
            ranks=tuple(range(first, first + count)),
            cpus=count * resources.cpus_per_rank,
            gpus=count * resources.gpus_per_rank,
        )
        first += count
    if first < resources.ranks:
        raise InputError(_describe_shortage(resources, tensor, nodes, first))
    if resources.evaluation_cpus:
        host = _with_evaluations(resources, list(placements.values()))
        placements[host.node.name] = host
    return list(placements.values())


def _with_evaluations(resources: RunResources, placements: Sequence[NodePlacement]) -> NodePlacement:
    """The node that hosts evaluations, with their resources."""
    cpus, gpus = resources.evaluation_cpus, resources.evaluation_gpus
    fitting = [each for each in placements if each.cpus_left >= cpus and each.gpus_left >= gpus]
    if not fitting:
        roomiest = max(placements, key=lambda each: (each.gpus_left >= gpus, each.cpus_left))
        needed = f"{cpus} CPUs (eval.workers)" + (f" and {gpus} GPUs (eval.gpus)" if gpus else "")
        left = f"{roomiest.cpus_left:g} CPUs" + (f" and {roomiest.gpus_left:g} GPUs" if gpus else "")
        settings = "eval.workers, eval.gpus" if gpus else "eval.workers"
        raise InputError(
            f"evaluations take {needed} of one node, the ranks leave {left} on {roomiest.node.name} and no "
            f"more elsewhere; add a node{'' if gpus else ' without GPUs'}, lower {settings} or "
            "cluster.cpus_per_rank, or set eval.every=0"
        )
    best = max(fitting, key=lambda each: (not each.ranks, each.cpus_left))
    return replace(best, evaluation_cpus=cpus, evaluation_gpus=gpus)


def _capacity(resources: RunResources, tensor: int, node: Node) -> int:
    """Number of ranks that a node has room for: whole tensor-parallel groups."""
    ranks = int(node.cpus // resources.cpus_per_rank)
    if resources.gpus_per_rank:
        ranks = min(ranks, int(node.gpus // resources.gpus_per_rank))
    return ranks - ranks % tensor


def _describe_shortage(resources: RunResources, tensor: int, nodes: Sequence[Node], fitting: int) -> str:
    each = f"{resources.cpus_per_rank} CPUs"
    if resources.gpus_per_rank:
        each += f" and {resources.gpus_per_rank} GPU"
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return (
        f"{resources.ranks} training processes of {each} each in groups of parallel.tensor={tensor} a node: "
        f"only {fitting} fit {len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs in all; lower "
        "parallel.data or cluster.cpus_per_rank, or take more nodes"
    )
