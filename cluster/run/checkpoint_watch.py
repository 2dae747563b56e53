"""Which committed checkpoints are to be evaluated."""

from __future__ import annotations

import time
from collections.abc import Collection
from pathlib import Path

from pretrain.checkpoint.location import CheckpointLocation
from pretrain.run_layout import RESULTS_FILE, files_by_step

_SECONDS_BETWEEN_REQUESTS = 10.0


class CheckpointWatch:
    """Looks for checkpoints that are complete: at a folder each time, at an object store now and then.

    Args:
        place: Where the run's checkpoints lie.
    """

    def __init__(self, place: CheckpointLocation) -> None:
        self._place = place
        self._seen: list[int] = []
        self._due = 0.0

    def steps(self, now: bool = False) -> list[int]:
        """Steps of the checkpoints that are complete, ascending.

        Args:
            now: Look in any case.

        Raises:
            InputError: The place cannot be listed.
        """
        if now or not self._place.is_remote or time.monotonic() >= self._due:
            self._seen = self._place.steps()
            self._due = time.monotonic() + _SECONDS_BETWEEN_REQUESTS
        return self._seen


def evaluated_steps(evaluations: Path) -> set[int]:
    """Steps whose evaluation has left its results."""
    return set(files_by_step(evaluations, RESULTS_FILE))


def due_steps(committed: Collection[int], every: int, last: int, done: Collection[int]) -> list[int]:
    """Committed steps that are to be evaluated and are not yet, ascending.

    Args:
        committed: Steps with a complete checkpoint.
        every: `eval.every`: multiples of it are evaluated; 0: none.
        last: Last step of the schedule, evaluated whether a multiple or not.
        done: Steps already evaluated or begun.
    """
    if every <= 0:
        return []
    return sorted(step for step in committed if (step % every == 0 or step == last) and step not in done)
