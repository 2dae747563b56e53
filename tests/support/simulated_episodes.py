"""A table of episodes without their shards, for plans over a data set that is not there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.storage.episode_entry import Task
from data.storage.episode_table import EpisodeTable


def simulated_episodes(count: int, tasks: Sequence[Task], seed: int) -> EpisodeTable:
    """`count` episodes of 60 to 299 steps for training, of random tasks."""
    random = np.random.default_rng(seed)
    columns = {
        "shard": np.zeros(count, np.int32),
        "offset": np.arange(count) * 102_400,
        "size": np.full(count, 102_400),
        "sha256": np.zeros((count, 32), np.uint8),
        "length": random.integers(60, 300, count, np.int32),
        "task": random.integers(0, len(tasks), count, np.int32),
        "split": np.zeros(count, np.uint8),
        "key_end": 1 + np.arange(count),
        "keys": np.full(count, ord("k"), np.uint8),
    }
    return EpisodeTable(columns, ["shard-000000.tar"], tasks)
