"""Which episode runs next, and which is retried."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from data.errors import InputError
from eval.pool.messages import EpisodeSpec
from eval.rollout.episode import EpisodeResult


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at an episode.

    Attributes:
        spec: The episode.
        number: Number of the attempt, from 1.
    """

    spec: EpisodeSpec
    number: int = 1


class EpisodeQueue:
    """The episodes that have no result yet.

    Args:
        specs: All episodes.
        retries: Further attempts at an episode that ended in a simulator error.
    """

    def __init__(self, specs: Sequence[EpisodeSpec], retries: int) -> None:
        self._pending = [Attempt(spec) for spec in specs]
        self._running: Counter[int] = Counter()  # by task
        self._retries = retries
        self._num_completed = 0  # without an error
        self._input_errors: list[str] = []

    @property
    def num_unfinished(self) -> int:
        """Number of episodes without a result."""
        return len(self._pending) + self._running.total()

    @property
    def is_done(self) -> bool:
        """Whether every episode has its result.

        Raises:
            InputError: No episode could run because of a mistake of the user.
        """
        if self.num_unfinished:
            return False
        if self._input_errors and not self._num_completed:
            raise InputError(self._input_errors[0])
        return True

    def next_attempt(self, task: int | None) -> Attempt | None:
        """The next attempt for a worker whose simulator runs `task`; None when none is pending.

        Opening another task's simulator takes longer than an episode, so a worker stays with its task; a free
        worker gets the task with the most pending episodes per worker.
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

    def finish(self, attempt: Attempt, result: EpisodeResult) -> Iterator[EpisodeResult]:
        """Record that an episode ended; one with an error is retried while attempts are left."""
        self._running[attempt.spec.task] -= 1
        if result.error is not None and attempt.number <= self._retries:
            self._retry(attempt)
            return
        self._num_completed += result.error is None
        yield replace(result, attempts=attempt.number)

    def fail(self, attempt: Attempt, error: str, is_input_error: bool = False) -> Iterator[EpisodeResult]:
        """Record that the process of an attempt failed.

        Args:
            attempt: What it was running.
            error: What happened.
            is_input_error: A mistake of the user: it is not retried, and fails all episodes of the task.
        """
        self._running[attempt.spec.task] -= 1
        if not is_input_error:
            if attempt.number <= self._retries:
                self._retry(attempt)
            else:
                yield _error_result(attempt, error)
            return
        self._input_errors.append(error)
        yield _error_result(attempt, error)
        for other in [a for a in self._pending if a.spec.task == attempt.spec.task]:
            self._pending.remove(other)
            yield _error_result(other, error)

    def _retry(self, attempt: Attempt) -> None:
        self._pending.append(replace(attempt, number=attempt.number + 1))


def _error_result(attempt: Attempt, error: str) -> EpisodeResult:
    return EpisodeResult(
        task=attempt.spec.task,
        initial_state=attempt.spec.initial_state,
        success=False,
        steps=0,
        error=error,
        seconds=0.0,
        attempts=attempt.number,
    )
