"""Tokenised episodes of one form, one after the other in a few arrays of fixed size.

Many samples are cut from them by a few array operations. When the ring is full, the episodes stored first are
overwritten. (Windows come in a random order, so every episode is equally likely to be requested next, and
least recently used would serve no better.)
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from data.stream.episodes.time_steps import TimeSteps
from data.stream.samples import SampleForm

ABSENT = -1
"""In place of the position of an episode that is not in the ring."""


class EpisodeRing:
    """A ring of time steps.

    Args:
        form: Sizes of the samples.
        variants: N, of the frames, beside the recorded ones.
        steps: Time steps that it holds.
        total: Time steps of all episodes.
        begins: int32 [E], position of the first time step of each episode in the ring, by the episode's
            number, or `ABSENT`; kept up to date.

    Attributes:
        size: Time steps that it holds.
        wraps: Whether it cannot hold all episodes.
        steps: The time steps.
    """

    def __init__(
        self, form: SampleForm, variants: int, steps: int, total: int, begins: NDArray[np.int32]
    ) -> None:
        self.size, self.wraps = steps, steps < total
        self.steps = TimeSteps.empty(steps, form, variants)
        self._begins = begins
        self._held: deque[tuple[int, int, int]] = deque()  # begin, end, episode; in the order of reading
        self._end = 0

    @property
    def room(self) -> int:
        """Time steps of episodes that can be stored one after the other without losing one of them."""
        # Half of a ring that wraps: an episode that does not fit at its end begins again at its start.
        return self.size // 2 if self.wraps else self.size

    def place(self, length: int) -> tuple[int, TimeSteps]:
        """Make room for an episode of `length` steps: its position, and its time steps, to be written."""
        if self._end + length > self.size:
            while self._held and self._held[0][0] >= self._end:  # of the previous round
                self._drop_oldest()
            self._end = 0
        begin, end = self._end, self._end + length
        while self._held and self._held[0][0] < end and self._held[0][1] > begin:
            self._drop_oldest()
        return begin, self.steps.part(begin, end)

    def add(self, episode: int, begin: int, length: int) -> None:
        """Note that an episode has been written where `place` said."""
        self._begins[episode] = begin
        self._held.append((begin, begin + length, episode))
        self._end = begin + length

    def _drop_oldest(self) -> None:
        self._begins[self._held.popleft()[2]] = ABSENT
