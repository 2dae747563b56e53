"""The progress of a Ray actor, asked for without waiting for the answer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")

_FINAL_ANSWER_SECONDS = 2.0  # an actor that has finished its task answers at once


class ProgressPoll(Generic[T]):
    """Polls `actor.progress()`.

    Args:
        actor: Handle of an actor whose method `progress` is answered while it works.
        initial: Progress before the first answer.
    """

    def __init__(self, actor: Any, initial: T) -> None:
        self._actor, self._latest = actor, initial
        self._pending: Any = None

    def latest(self) -> T:
        """The newest answer; asks again if there is none on its way."""
        import ray
        from ray.exceptions import RayError

        if self._pending is None:
            self._pending = self._actor.progress.remote()
        elif ray.wait([self._pending], timeout=0)[0]:
            pending, self._pending = self._pending, None
            with suppress(RayError):  # the actor has died: the result of its task says why
                self._latest = cast(T, ray.get(pending))
        return self._latest

    def close(self) -> None:
        """Wait briefly for an answer on its way: Ray logs an error for one that is lost with its actor."""
        import ray

        if self._pending is not None:
            ray.wait([self._pending], timeout=_FINAL_ANSWER_SECONDS)
