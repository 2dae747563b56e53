"""Blocks of neighbouring episodes."""

from __future__ import annotations

import numpy as np

from data.stream.order.episode_blocks import EpisodeBlocks


def test_blocks_by_number_cover_all_episodes_and_the_last_one_is_the_rest() -> None:
    blocks = EpisodeBlocks(10, 4)
    assert [blocks.of(episode) for episode in (0, 3, 4, 9)] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_blocks_follow_the_order_they_are_given() -> None:
    order = np.array([4, 0, 3, 1, 2], np.int32)
    blocks = EpisodeBlocks(5, 2, order)
    assert [blocks.of(episode) for episode in range(5)] == [[4, 0], [3, 1], [2], [3, 1], [4, 0]]
