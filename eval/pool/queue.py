"""Which episode comes next, and which is tried again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data.errors import InputError
from eval.pool.messages import EpisodeSpec
from eval.rollout.episode import EpisodeResult


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try of an episode.

    Attributes:
        spec: The episode.
        number: Of the try, from 1 on.
    """

    spec: EpisodeSpec
    number: int = 1


class EpisodeQueue:
    """The episodes that have no result yet.

    Args:
        specs: All episodes.
        retries: Further tries of one that the simulator broke off.
    """

    def __init__(self, specs: Sequence[EpisodeSpec], retries: int) -> None:
        self._pending = [Attempt(spec) for spec in specs]
        self._running: Counter[int] = Counter()  # by task
        self._retries = retries
        self._regular = 0
        self._mistakes: list[str] = []

    @property
    def open(self) -> int:
        """Episodes without a result."""
        return len(self._pending) + self._running.total()

    @property
    def done(self) -> bool:
        """Whether every episode has its result.

        Raises:
            InputError: None could be run, for a mistake of the user.
        """
        if self.open:
            return False
        if self._mistakes and not self._regular:
            raise InputError(self._mistakes[0])
        return True

    def take(self, task: int | None) -> Attempt | None:
        """The next episode for a worker whose simulator runs `task`; None when none is pending.

        Opening another task's simulator takes longer than an episode, so a worker stays with its task; a free
        one goes where the most episodes wait for each worker.
        """
        if not self._pending:
            return None
        waiting = Counter(attempt.spec.task for attempt in self._pending)
        if task is None or task not in waiting:
            task = max(waiting, key=lambda t: (waiting[t] / (1 + self._running[t]), -t))
        chosen = next(attempt for attempt in self._pending if attempt.spec.task == task)
        self._pending.remove(chosen)
        self._running[task] += 1
        return chosen

    def ended(self, attempt: Attempt, result: EpisodeResult) -> Iterator[EpisodeResult]:
        """An episode came to its end; one with an error is tried again, or is the result."""
        self._running[attempt.spec.task] -= 1
        if result.error is not None and attempt.number <= self._retries:
            self._again(attempt)
            return
        self._regular += result.error is None
        yield replace(result, attempts=attempt.number)

    def broke(self, attempt: Attempt, error: str, mistake: bool = False) -> Iterator[EpisodeResult]:
        """A process broke down in an episode.

        Args:
            attempt: What it was running.
            error: What happened.
            mistake: The user's, which another try meets again: so do all episodes of the task.
        """
        self._running[attempt.spec.task] -= 1
        if not mistake:
            if attempt.number <= self._retries:
                self._again(attempt)
            else:
                yield _error(attempt, error)
            return
        self._mistakes.append(error)
        yield _error(attempt, error)
        for other in [a for a in self._pending if a.spec.task == attempt.spec.task]:
            self._pending.remove(other)
            yield _error(other, error)

    def _again(self, attempt: Attempt) -> None:
        self._pending.append(replace(attempt, number=attempt.number + 1))


def _error(attempt: Attempt, error: str) -> EpisodeResult:
    return EpisodeResult(
        task=attempt.spec.task,
        initial_state=attempt.spec.initial_state,
        success=False,
        steps=0,
        error=error,
        seconds=0.0,
        attempts=attempt.number,
    )
