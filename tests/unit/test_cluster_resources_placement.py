"""Which node runs what."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.cli.main import main
from cluster.resources.placement import Node, place_run
from cluster.resources.run_resources import RunResources
from data.errors import InputError


def test_tensor_parallel_peers_share_a_node() -> None:
    nodes = [Node("a", 12, 3), Node("b", 12, 4), Node("c", 12, 8)]
    placements = place_run(RunResources(12, 1, 1, 2), 4, nodes)
    assert [each.ranks for each in placements] == [(), (8, 9, 10, 11), (0, 1, 2, 3, 4, 5, 6, 7)]
    assert [each.evaluation_cpus for each in placements] == [2, 0, 0], "on the node without ranks"


def test_the_example_in_the_docstring() -> None:
    placements = place_run(RunResources(4, 1, 0, 2), 2, [Node("n0", 5, 0), Node("n1", 5, 0)])
    assert [(each.ranks, each.evaluation_cpus) for each in placements] == [((0, 1, 2, 3), 0), ((), 2)]


def test_evaluations_with_a_gpu_are_placed_where_one_is_left() -> None:
    placements = place_run(RunResources(4, 1, 1, 2, 1), 1, [Node("cpu", 200, 0), Node("gpu", 96, 8)])
    assert [(each.evaluation_cpus, each.evaluation_gpus) for each in placements] == [(0, 0), (2, 1)]
    assert (placements[1].cpus_left, placements[1].gpus_left) == (90, 3)


def test_evaluations_use_what_the_ranks_leave() -> None:
    placements = place_run(RunResources(8, 8, 1, 16), 8, [Node("gpu", 96, 8)])
    assert (placements[0].evaluation_cpus, placements[0].cpus_left) == (16, 16)


@pytest.mark.parametrize(
    ("resources", "tensor", "nodes", "message"),
    [
        (RunResources(16, 8, 1, 0), 8, [Node("a", 96, 8)], r"^16 training processes .* only 8 fit 1 nodes"),
        (RunResources(8, 8, 1, 0), 8, [Node("a", 32, 8)], "only 0 fit"),
        (
            RunResources(8, 1, 1, 0),
            8,
            [Node("a", 8, 4), Node("b", 8, 4)],
            "groups of parallel.tensor=8 a node: only 0",
        ),
        (
            RunResources(8, 12, 1, 8),
            8,
            [Node("a", 96, 8)],
            r"^evaluations take 8 CPUs .* the ranks leave 0 CPUs on a",
        ),
        (
            RunResources(4, 1, 1, 2, 5),
            1,
            [Node("a", 96, 8), Node("c", 200, 0)],
            r"^evaluations take 2 CPUs \(eval.workers\) and 5 GPUs \(eval.gpus\) of one node, the ranks "
            "leave 200 CPUs and 0 GPUs on c",
        ),
        (RunResources(1, 1, 0, 0), 1, [Node("a", 9, 0), Node("a", 9, 0)], "two nodes have one name"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_the_numbers(
    resources: RunResources, tensor: int, nodes: list[Node], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        place_run(resources, tensor, nodes)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 8)), min_size=1, max_size=12),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 16),
    st.integers(0, 1),
    st.integers(0, 9),
    st.integers(0, 3),
)
def test_every_placement_is_complete_and_within_every_node(
    sizes: list[tuple[int, int]],
    tensor: int,
    data: int,
    gpus_per_rank: int,
    evaluation: int,
    evaluation_gpus: int,
) -> None:
    nodes = [Node(f"n{number}", cpus, gpus) for number, (cpus, gpus) in enumerate(sizes)]
    resources = RunResources(
        tensor * data, 2, gpus_per_rank, evaluation, evaluation_gpus if evaluation else 0
    )
    try:
        placements = place_run(resources, tensor, nodes)
    except InputError:
        return
    assert sorted(rank for each in placements for rank in each.ranks) == list(range(tensor * data))
    assert sum(each.evaluation_cpus for each in placements) == evaluation
    for each in placements:
        assert each.cpus_left >= 0
        assert each.gpus_left >= 0
        assert (each.evaluation_gpus == evaluation_gpus) == (each.evaluation_cpus > 0 or evaluation_gpus == 0)
        assert len(each.ranks) % tensor == 0
        assert (
            list(each.ranks) == list(range(each.ranks[0], each.ranks[0] + len(each.ranks)))
            if each.ranks
            else True
        )


def test_inspect_cluster_shows_the_placement(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", "cluster", "experiment=worldvla_libero_goal_256", "nodes=8", "parallel.tensor=2"]
    assert main([*words, "parallel.data=32", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [len(node["ranks"]) for node in printed["nodes"]] == [8] * 8
    assert main([*words, "parallel.data=32"]) == 0
    assert "56 to 63" in capsys.readouterr().out
    for wrong in ("nodes=0", "cpus_per_node=0", "cpu_nodes=-1"):
        assert main([*words, wrong]) == 2
        assert capsys.readouterr().err.startswith(f"error: {wrong}, expected ")
    assert main([*words, "parallel.data=4", "eval.every=5000", "eval.gpus=57"]) == 2
    assert "evaluations take 8 CPUs (eval.workers) and 57 GPUs" in capsys.readouterr().err
    assert main([*words, "parallel.data=64"]) == 2
    assert "only 64 fit 8 nodes" in capsys.readouterr().err
