"""Runs of neighbouring episodes of a shard, which are read together where all episodes will be needed."""

from __future__ import annotations

import numpy as np

from data.storage.episode_ranges import LARGEST_RANGE
from data.storage.episode_table import EpisodeTable


class ShardRuns:
    """The episodes of one data set, divided into runs of at most `LARGEST_RANGE` bytes of a shard.

    The runs follow from the table alone, so that all processes request the same ones.

    Args:
        entries: The episodes.
    """

    def __init__(self, entries: EpisodeTable) -> None:
        shards, offsets, sizes = entries.shard_numbers, entries.offsets, entries.sizes
        # A run begins within `width` bytes and ends with an episode that begins there.
        width = max(LARGEST_RANGE - int(sizes.max(initial=0)), LARGEST_RANGE // 2)
        pieces = offsets // width
        order = np.lexsort((offsets, shards))
        differs = (np.diff(shards[order]) != 0) | (np.diff(pieces[order]) != 0)
        run_of = np.concatenate([np.zeros(1, np.int32), np.cumsum(differs, dtype=np.int32)])
        self._order = order.astype(np.int32)
        self._begins = np.append(np.flatnonzero(np.diff(run_of, prepend=-1)), len(order))
        self._runs = np.empty(len(order), np.int32)
        self._runs[order] = run_of

    def of(self, episode: int) -> list[int]:
        """All episodes of the run that an episode belongs to, in the order of the shard."""
        run = int(self._runs[episode])
        return self._order[self._begins[run] : self._begins[run + 1]].tolist()
