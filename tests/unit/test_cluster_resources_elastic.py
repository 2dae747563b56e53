"""The layout of a training on the available nodes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import ClusterConfig, RootConfig
from cluster.resources.elastic import ElasticLayout, largest_layout, with_data_parallel
from cluster.resources.placement import Node
from cluster.resources.run_resources import required_resources
from data.errors import InputError
from pretrain.config import ParallelConfig, TrainerConfig


def run(tensor: int, data: int, batch: int, least: int | None = None, micro: int | None = None) -> RootConfig:
    config = RootConfig(
        parallel=ParallelConfig(tensor=tensor, data=data),
        trainer=TrainerConfig(global_batch=batch, micro_batch=micro),
        cluster=ClusterConfig(gpus_per_rank=1, least_data=least),
    )
    config.eval.every = 0
    return config


def nodes(*gpus: int) -> list[Node]:
    return [Node(f"n{number}", 64, count) for number, count in enumerate(gpus)]


def layout_on(config: RootConfig, *gpus: int) -> ElasticLayout:
    return largest_layout(config, required_resources(config, 8), nodes(*gpus))


def test_all_ranks_fit_with_tensor_parallel_peers_on_one_node() -> None:
    layout = layout_on(run(2, 4, 16), 4, 4)
    assert layout.data == 4
    assert layout.rank_nodes == ("n0",) * 4 + ("n1",) * 4


def test_a_lost_node_leaves_fewer_ranks_with_the_same_batch() -> None:
    layout = layout_on(run(2, 4, 16, least=1), 4)
    assert (layout.data, layout.resources.ranks) == (2, 4)
    assert layout.config.trainer.global_batch == 16
    assert layout.config.trainer.micro_batch == 4  # as with all of them: the activations' memory is the same


def test_sizes_that_do_not_divide_the_batch_are_skipped() -> None:
    assert layout_on(run(1, 4, 8, least=1), 3).data == 2


def test_too_few_nodes_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        InputError, match=r"^8 training processes .* only 4 fit 1 nodes with 64 CPUs and 4 GPUs"
    ):
        layout_on(run(2, 4, 16), 4)
    with pytest.raises(InputError, match=r"^4 training processes .* only 2 fit"):
        layout_on(run(2, 4, 16, least=2), 2)


@settings(deadline=None)
@given(st.integers(1, 16), st.integers(1, 8), st.data())
def test_micro_batches_divide_every_share_and_never_grow(data: int, share: int, more: st.DataObject) -> None:
    batch = data * share
    micro = more.draw(st.sampled_from([None, *(n for n in range(1, share + 1) if share % n == 0)]))
    smaller = more.draw(st.sampled_from([n for n in range(1, data + 1) if batch % n == 0]))
    trainer = with_data_parallel(run(1, data, batch, micro=micro), smaller).trainer
    if smaller == data:
        assert trainer.micro_batch == micro
    else:
        assert trainer.micro_batch is not None
        assert (batch // smaller) % trainer.micro_batch == 0
        assert trainer.micro_batch <= (micro or share)
