"""Which committed checkpoints are to be evaluated."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

from pretrain.checkpoint.location import CheckpointLocation
from pretrain.run_layout import RESULTS_FILE, files_by_step

_SECONDS_BETWEEN_REQUESTS = 10.0


class CheckpointWatch:
    """Lists committed checkpoints: of a folder at every call, of an object store at most every ten seconds.

    Args:
        checkpoints: Location of the run's checkpoints.
        clock: Seconds; monotonic.
    """

    def __init__(self, checkpoints: CheckpointLocation, clock: Callable[[], float] = time.monotonic) -> None:
        self._checkpoints, self._clock = checkpoints, clock
        self._listed: list[int] = []
        self._next_request = float("-inf")

    def steps(self, refresh: bool = False) -> list[int]:
        """Steps of the committed checkpoints, ascending.

        Args:
            refresh: List an object store again in any case.

        Raises:
            InputError: The location cannot be listed.
        """
        if refresh or not self._checkpoints.is_remote or self._clock() >= self._next_request:
            self._listed = self._checkpoints.steps()
            self._next_request = self._clock() + _SECONDS_BETWEEN_REQUESTS
        return self._listed


def evaluated_steps(evaluations: Path) -> set[int]:
    """Steps whose evaluation has written its results."""
    return set(files_by_step(evaluations, RESULTS_FILE))


def due_steps(committed: Collection[int], every: int, last: int, submitted: Collection[int]) -> list[int]:
    """Committed steps that are to be evaluated and have not been submitted yet, ascending.

    Args:
        committed: Steps with a committed checkpoint.
        every: `eval.every`: multiples of it are evaluated; 0: none.
        last: Last step of the schedule, evaluated whether a multiple or not.
        submitted: Steps that are evaluated or being evaluated.
    """
    if every <= 0:
        return []
    return sorted(step for step in committed if (step % every == 0 or step == last) and step not in submitted)
