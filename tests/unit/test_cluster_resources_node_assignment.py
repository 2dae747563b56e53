"""Which node runs what: a pure plan."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli.main import main
from cluster.resources.node_assignment import Node, assign
from cluster.resources.placement import Placement
from data.errors import InputError


def test_tensor_parallel_peers_share_a_node() -> None:
    nodes = [Node("a", 12, 3), Node("b", 12, 4), Node("c", 12, 8)]
    found = assign(Placement(12, 1, 1, 2), 4, nodes)
    assert [each.ranks for each in found] == [(), (8, 9, 10, 11), (0, 1, 2, 3, 4, 5, 6, 7)]
    assert [each.evaluation_cpus for each in found] == [2, 0, 0], "on the node without ranks"


def test_the_example_of_the_docstring() -> None:
    found = assign(Placement(4, 1, 0, 2), 2, [Node("n0", 5, 0), Node("n1", 5, 0)])
    assert [(each.ranks, each.evaluation_cpus) for each in found] == [((0, 1, 2, 3), 0), ((), 2)]


def test_evaluations_with_a_gpu_go_where_one_is_left() -> None:
    found = assign(Placement(4, 1, 1, 2, 1), 1, [Node("cpu", 200, 0), Node("gpu", 96, 8)])
    assert [(each.evaluation_cpus, each.evaluation_gpus) for each in found] == [(0, 0), (2, 1)]
    assert (found[1].cpus_left, found[1].gpus_left) == (90, 3)


def test_evaluations_take_what_the_ranks_leave() -> None:
    found = assign(Placement(8, 8, 1, 16), 8, [Node("gpu", 96, 8)])
    assert (found[0].evaluation_cpus, found[0].cpus_left) == (16, 16)


@pytest.mark.parametrize(
    ("placement", "tensor", "nodes", "message"),
    [
        (Placement(16, 8, 1, 0), 8, [Node("a", 96, 8)], r"^16 training processes .* only 8 fit 1 nodes"),
        (Placement(8, 8, 1, 0), 8, [Node("a", 32, 8)], "only 0 fit"),
        (
            Placement(8, 1, 1, 0),
            8,
            [Node("a", 8, 4), Node("b", 8, 4)],
            "groups of parallel.tensor=8 a node: only 0",
        ),
        (
            Placement(8, 12, 1, 8),
            8,
            [Node("a", 96, 8)],
            r"^evaluations take 8 CPUs .* the ranks leave 0 CPUs on a",
        ),
        (
            Placement(4, 1, 1, 2, 5),
            1,
            [Node("a", 96, 8), Node("c", 200, 0)],
            r"^evaluations take 2 CPUs \(eval.workers\) and 5 GPUs \(eval.gpus\) of one node, the ranks "
            "leave 200 CPUs and 0 GPUs on c",
        ),
        (Placement(1, 1, 0, 0), 1, [Node("a", 9, 0), Node("a", 9, 0)], "two nodes have one name"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    placement: Placement, tensor: int, nodes: list[Node], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        assign(placement, tensor, nodes)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=12),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 16),
    st.integers(0, 1),
    st.integers(0, 9),
    st.integers(0, 3),
)
def test_every_plan_is_whole_and_within_every_node(
    sizes: list[tuple[int, int]],
    tensor: int,
    data: int,
    gpus_per_rank: int,
    evaluation: int,
    evaluation_gpus: int,
) -> None:
    nodes = [Node(f"n{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(sizes)]
    placement = Placement(tensor * data, 2, gpus_per_rank, evaluation, evaluation_gpus if evaluation else 0)
    try:
        found = assign(placement, tensor, nodes)
    except InputError:
        return
    assert sorted(rank for each in found for rank in each.ranks) == list(range(tensor * data))
    assert sum(each.evaluation_cpus for each in found) == evaluation
    for each in found:
        assert each.cpus_left >= 0
        assert each.gpus_left >= 0
        assert (each.evaluation_gpus == evaluation_gpus) == (each.evaluation_cpus > 0 or evaluation_gpus == 0)
        assert len(each.ranks) % tensor == 0
        assert (
            list(each.ranks) == list(range(each.ranks[0], each.ranks[0] + len(each.ranks)))
            if each.ranks
            else True
        )


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "cluster", "experiment=worldvla_libero_goal_256", "nodes=8", "parallel.tensor=2"]
    assert main([*words, "parallel.data=32", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [len(node["ranks"]) for node in told["nodes"]] == [8] * 8
    assert main([*words, "parallel.data=32"]) == 0
    assert "56 to 63" in capsys.readouterr().out
    for wrong in ("nodes=0", "cpus_per_node=0", "cpu_nodes=-1"):
        assert main([*words, wrong]) == 2
        assert capsys.readouterr().err.startswith(f"error: {wrong}, expected ")
    assert main([*words, "parallel.data=4", "eval.gpus=57"]) == 2
    assert "evaluations take 8 CPUs (eval.workers) and 57 GPUs" in capsys.readouterr().err
    assert main([*words, "parallel.data=64"]) == 2
    assert "only 64 fit 8 nodes" in capsys.readouterr().err
