"""Whether a training that failed is started again, and after how long. Pure: failures in, decisions out."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.config import ClusterConfig
from cluster.failures import CommandFailedError, TrainingFailedError

_SAME_WAY = 3
_LONGEST_DELAY = 300.0
_NEVER_AGAIN = ("DivergedError",)  # going back was tried, in the training itself


@dataclass
class RestartPolicy:
    """Decides after each failure of a training.

    Attributes:
        settings: `cluster.run.restarts` and `cluster.restart_delay`.
        total: Restarts so far.
    """

    settings: ClusterConfig
    total: int = 0
    _without_progress: int = 0
    _newest: int = 0
    _seen: list[tuple[int, str]] = field(default_factory=list)

    def after(self, failure: TrainingFailedError, step: int, newest: int) -> float:
        """Seconds to wait before the next start.

        The restarts are counted anew whenever a later checkpoint has been committed; their delays double.

        Args:
            failure: How the training ended.
            step: Last step that it reported.
            newest: Step of its newest checkpoint; 0: none.

        Raises:
            CommandFailedError: It is not started again; says why and what to do.
        """
        if self.settings.restarts == 0 or failure.kind in _NEVER_AGAIN:
            raise failure
        if newest > self._newest:
            self._newest, self._without_progress = newest, 0
        if failure.kind is not None:  # a process that was killed says nothing of the step
            self._seen.append((step, failure.headline))
            if self._seen[-_SAME_WAY:] == [self._seen[-1]] * _SAME_WAY:
                raise CommandFailedError(
                    f"the training failed {_SAME_WAY} times in the same way after step {step}: {failure}. "
                    "Another start would end there too: mend the cause, or leave the batch out, then give "
                    "the same command"
                )
        if self._without_progress >= self.settings.restarts:
            raise CommandFailedError(
                f"{self._without_progress} restarts without a checkpoint beyond step {newest} "
                f"(cluster.restarts): {failure}"
            )
        self._without_progress += 1
        self.total += 1
        return min(self.settings.restart_delay * 2 ** (self._without_progress - 1), _LONGEST_DELAY)
