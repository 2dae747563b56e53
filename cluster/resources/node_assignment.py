"""Which node runs what: training ranks, and evaluations on what is left. Pure: nodes in, a plan out.

Ranks are numbered node by node, and a node takes a multiple of `parallel.tensor` of them, so that
tensor-parallel peers, who exchange the most, are on one node. Two nodes of five CPUs, tensor 2, data 2, one
CPU a rank, two for evaluation::

    n0   ranks 0 1 2 3   one CPU left
    n1                   evaluation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.resources.placement import Placement
from data.errors import InputError


@dataclass(frozen=True, slots=True)
class Node:
    """A machine.

    Attributes:
        name: As Slurm or Ray calls it.
        cpus: Logical CPUs that it offers.
        gpus: GPUs that it offers.
    """

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class Assignment:
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
        """Logical CPUs that nothing takes."""
        return self.node.cpus - self.cpus - self.evaluation_cpus

    @property
    def gpus_left(self) -> float:
        """GPUs that nothing takes."""
        return self.node.gpus - self.gpus - self.evaluation_gpus


def assign(placement: Placement, tensor: int, nodes: Sequence[Node]) -> list[Assignment]:
    """Give every rank and the evaluations a node.

    Nodes with the most GPUs (on CPUs: with the most CPUs) take ranks first; an evaluation is one process
    group of one node, the one with the most CPUs left of those with enough CPUs and GPUs, nodes without ranks
    before others.

    Args:
        placement: What the run takes.
        tensor: `parallel.tensor`.
        nodes: The machines.

    Returns:
        One entry a node, in the order of `nodes`.

    Raises:
        InputError: The run does not fit; says what was asked for and what the nodes offer.
    """
    found = {node.name: Assignment(node) for node in nodes}
    if len(found) != len(nodes):
        raise InputError("two nodes have one name; name each node once")
    first = 0
    for node in sorted(nodes, key=lambda node: (-node.gpus, -node.cpus)):
        count = min(_room(placement, tensor, node), placement.ranks - first)
        ranks = tuple(range(first, first + count))
        cpus, gpus = count * placement.cpus_per_rank, count * placement.gpus_per_rank
        found[node.name] = Assignment(node, ranks, 0, cpus, gpus)
        first += count
    if first < placement.ranks:
        raise InputError(_too_few(placement, tensor, nodes, first))
    if placement.evaluation_cpus:
        found |= _with_evaluations(placement, list(found.values()))
    return list(found.values())


def _with_evaluations(placement: Placement, found: Sequence[Assignment]) -> dict[str, Assignment]:
    """The node that evaluations get, with them."""
    cpus, gpus = placement.evaluation_cpus, placement.evaluation_gpus
    fitting = [each for each in found if each.cpus_left >= cpus and each.gpus_left >= gpus]
    if not fitting:
        roomy = max(found, key=lambda each: (each.gpus_left >= gpus, each.cpus_left))
        wanted = f"{cpus} CPUs (eval.workers)" + (f" and {gpus} GPUs (eval.gpus)" if gpus else "")
        left = f"{roomy.cpus_left:g} CPUs" + (f" and {roomy.gpus_left:g} GPUs" if gpus else "")
        fewer = "eval.workers, eval.gpus" if gpus else "eval.workers"
        raise InputError(
            f"evaluations take {wanted} of one node, the ranks leave {left} on {roomy.node.name} and no more "
            f"elsewhere; lower {fewer} or cluster.cpus_per_rank, or add a node"
            + ("" if gpus else " without GPUs")
        )
    best = max(fitting, key=lambda each: (not each.ranks, each.cpus_left))
    return {best.node.name: replace(best, evaluation_cpus=cpus, evaluation_gpus=gpus)}


def _room(placement: Placement, tensor: int, node: Node) -> int:
    """Ranks that a node can take: whole tensor-parallel groups."""
    room = int(node.cpus // placement.cpus_per_rank)
    if placement.gpus_per_rank:
        room = min(room, int(node.gpus // placement.gpus_per_rank))
    return room - room % tensor


def _too_few(placement: Placement, tensor: int, nodes: Sequence[Node], fitting: int) -> str:
    each = f"{placement.cpus_per_rank} CPUs"
    if placement.gpus_per_rank:
        each += f" and {placement.gpus_per_rank} GPU"
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return (
        f"{placement.ranks} training processes of {each} each in groups of parallel.tensor={tensor} a node: "
        f"only {fitting} fit {len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs in all; lower "
        "parallel.data or cluster.cpus_per_rank, or take more nodes"
    )
