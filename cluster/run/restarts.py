"""Whether a training that failed is restarted, and after how long. Pure: failures in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.config import ClusterConfig
from cluster.failures import CommandFailedError, TrainingFailedError

_MAX_IDENTICAL_FAILURES = 3
_MAX_DELAY = 300.0  # seconds
_NOT_RESTARTED = ("DivergedError",)  # the training itself has tried to roll back


@dataclass
class RestartPolicy:
    """Decides after each failure of a training.

    Attributes:
        settings: `cluster.restarts` and `cluster.restart_delay`.
        total: Restarts so far.
    """

    settings: ClusterConfig
    total: int = 0
    _without_progress: int = 0
    _newest_checkpoint: int = 0
    _failures: list[tuple[int, str]] = field(default_factory=list)

    def delay_after(self, failure: TrainingFailedError, step: int, newest_checkpoint: int) -> float:
        """Seconds to wait before the next start.

        Restarts are counted from zero whenever a later checkpoint has been committed; their delays double.

        Args:
            failure: How the training ended.
            step: Last step that it reported.
            newest_checkpoint: Step of its newest checkpoint; 0: none.

        Raises:
            CommandFailedError: It is not restarted; says why and what to do.
        """
        if self.settings.restarts == 0 or failure.kind in _NOT_RESTARTED:
            raise failure
        if newest_checkpoint > self._newest_checkpoint:
            self._newest_checkpoint, self._without_progress = newest_checkpoint, 0
        if failure.kind is not None:  # a process that was killed does not depend on the step
            self._check_not_repeated(failure, step)
        if self._without_progress >= self.settings.restarts:
            raise CommandFailedError(
                f"{self._without_progress} restarts without a checkpoint beyond step {newest_checkpoint} "
                f"(cluster.restarts): {failure}"
            )
        self._without_progress += 1
        self.total += 1
        return min(self.settings.restart_delay * 2 ** (self._without_progress - 1), _MAX_DELAY)

    def _check_not_repeated(self, failure: TrainingFailedError, step: int) -> None:
        """Refuse another start after the same failure at the same step several times in a row."""
        self._failures.append((step, failure.headline))
        if self._failures[-_MAX_IDENTICAL_FAILURES:] == [self._failures[-1]] * _MAX_IDENTICAL_FAILURES:
            raise CommandFailedError(
                f"the training failed {_MAX_IDENTICAL_FAILURES} times in the same way after step {step}: "
                f"{failure}. Another start would fail there too: fix the cause, or leave the batch out, then "
                "repeat the command"
            )
