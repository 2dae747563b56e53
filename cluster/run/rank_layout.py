"""How the processes of a training are numbered, and the environment that torch.distributed reads from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True, slots=True)
class Location:
    """Where one training process is.

    Attributes:
        node: Ray's id of its node.
        address: IP address of the node.
        free_port: A TCP port of the node that nobody listens on.
        gpus: Ids of the GPUs that the process was given.
    """

    node: str
    address: str
    free_port: int
    gpus: tuple[str, ...] = ()


def rank_environments(locations: Sequence[Location]) -> list[dict[str, str]]:
    """The variables of each process, as torchrun sets them.

    Ranks are numbered node by node, nodes and processes in the order given. A process sees the GPUs of all
    ranks of its node, in the order of their local ranks (`LOCAL_RANK` is its own device): NCCL then finds the
    paths between them.

    Args:
        locations: One per process.
    """
    by_node: dict[str, list[int]] = {}
    for process, location in enumerate(locations):
        by_node.setdefault(location.node, []).append(process)
    ranks = {process: rank for rank, process in enumerate(chain.from_iterable(by_node.values()))}
    shared = {
        "WORLD_SIZE": str(len(locations)),
        "MASTER_ADDR": locations[0].address,
        "MASTER_PORT": str(locations[0].free_port),
    }
    environments: list[dict[str, str]] = [{} for _ in locations]
    for node_rank, members in enumerate(by_node.values()):
        gpus = ",".join(gpu for process in members for gpu in locations[process].gpus)
        for local_rank, process in enumerate(members):
            environments[process] = shared | {
                "RANK": str(ranks[process]),
                "LOCAL_RANK": str(local_rank),
                "LOCAL_WORLD_SIZE": str(len(members)),
                "NODE_RANK": str(node_rank),
            }
            if gpus:
                environments[process]["CUDA_VISIBLE_DEVICES"] = gpus
    return environments
