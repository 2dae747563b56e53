"""The environment of the ranks is torchrun's."""

from __future__ import annotations

from cluster.run.rank_layout import Location, rank_environments


def test_ranks_are_numbered_node_by_node_and_see_the_gpus_of_their_peers() -> None:
    locations = [
        Location("b", "10.0.0.2", 4001, ("3",)),
        Location("a", "10.0.0.1", 4002, ("0",)),
        Location("b", "10.0.0.2", 4003, ("1",)),
    ]
    shared = {"WORLD_SIZE": "3", "MASTER_ADDR": "10.0.0.2", "MASTER_PORT": "4001"}
    on_b = {**shared, "NODE_RANK": "0", "LOCAL_WORLD_SIZE": "2", "CUDA_VISIBLE_DEVICES": "3,1"}
    on_a = {**shared, "NODE_RANK": "1", "LOCAL_WORLD_SIZE": "1", "CUDA_VISIBLE_DEVICES": "0"}
    assert rank_environments(locations) == [
        {**on_b, "RANK": "0", "LOCAL_RANK": "0"},
        {**on_a, "RANK": "2", "LOCAL_RANK": "0"},
        {**on_b, "RANK": "1", "LOCAL_RANK": "1"},
    ]


def test_without_gpus_what_is_visible_stays_as_it_is() -> None:
    (environment,) = rank_environments([Location("a", "127.0.0.1", 4000)])
    assert "CUDA_VISIBLE_DEVICES" not in environment
