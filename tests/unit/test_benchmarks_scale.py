"""Requests of a node, found by replaying the plan of its ranks."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.scale_measured import build_plan, episode_lengths
from benchmarks.scale_reading import NodeMemory, node_requests
from data.stream.order.plan import DataPlan

EPISODES, DATA, STEPS = 300, 4, 3
LENGTHS = episode_lengths(EPISODES, 40)
ALL = int(LENGTHS.sum())


@pytest.fixture(scope="module")
def plan() -> DataPlan:
    return build_plan(LENGTHS, 8, 4096, "full")


def ranges(plan: DataPlan, step: int) -> int:
    """Ranges of neighbouring episodes that the two last ranks of four need in a step, each for itself."""
    needed = [np.unique(plan.step(step, *plan.share(rank, DATA)).episodes) for rank in (2, 3)]
    return sum(1 + int((np.diff(episodes) > 1).sum()) for episodes in needed)


def test_with_hardly_any_memory_every_episode_of_every_step_is_requested(plan: DataPlan) -> None:
    found = node_requests(plan, DATA, LENGTHS, NodeMemory(2, 1, 1, 0), STEPS)
    assert found.first.tolist() == [ranges(plan, step) for step in range(STEPS)]


def test_peers_read_for_themselves_unless_they_share_a_cache(plan: DataPlan) -> None:
    alone = node_requests(plan, DATA, LENGTHS, NodeMemory(2, 1, ALL, 0), STEPS)
    peers = node_requests(plan, DATA, LENGTHS, NodeMemory(2, 3, ALL, 0), STEPS)
    shared = node_requests(plan, DATA, LENGTHS, NodeMemory(2, 3, ALL, ALL), STEPS)
    assert peers.episodes == pytest.approx(3 * alone.episodes)
    assert shared.episodes <= alone.episodes


def test_where_a_node_holds_everything_it_fetches_each_episode_once(plan: DataPlan) -> None:
    found = node_requests(plan, DATA, LENGTHS, NodeMemory(DATA, 2, ALL, ALL), STEPS)
    assert found.episodes * np.ceil(found.epoch_steps) == pytest.approx(EPISODES)
    assert found.of_step <= found.episodes, "neighbours share a request"


def test_in_the_local_order_blocks_are_fetched_together() -> None:
    lengths = episode_lengths(2_000, 40)
    plan = build_plan(lengths, 2, 4096, "local")
    blocks = plan.blocks[0]
    assert blocks is not None
    assert blocks.size > 1
    steps = int(lengths.sum())
    found = node_requests(plan, 1, lengths, NodeMemory(1, 1, steps, 0), 1)
    first = np.unique(plan.step(0).episodes)
    assert found.first[0] > 0
    assert found.episodes * np.ceil(found.epoch_steps) == pytest.approx(len(lengths))
    together = {other for episode in first.tolist() for other in blocks.of(episode)}
    assert found.first[0] <= len(together)
