"""Blocks of neighbouring episodes, which are read together."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray


class EpisodeBlocks:
    """The episodes of one data set in an order that is cut into blocks of equal size (the last one is rest).

    Args:
        episodes: E, their number.
        size: Episodes of a block.
        order: int32 [E], the episodes in order; None: by their numbers.
    """

    def __init__(self, episodes: int, size: int, order: NDArray[np.int32] | None = None) -> None:
        self._episodes, self._order = episodes, order
        self.size = size

    def of(self, episode: int) -> list[int]:
        """All episodes of the block that an episode belongs to, in order."""
        place = episode if self._order is None else int(self._places[episode])
        begin = place - place % self.size
        end = min(begin + self.size, self._episodes)
        return list(range(begin, end)) if self._order is None else self._order[begin:end].tolist()

    @cached_property
    def _places(self) -> NDArray[np.int32]:
        """int32 [E], place of each episode in the order."""
        assert self._order is not None
        places = np.empty(self._episodes, np.int32)
        places[self._order] = np.arange(self._episodes, dtype=np.int32)
        return places
