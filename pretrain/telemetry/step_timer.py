"""How long the steps of this rank take, and how much of that is waiting for data and for peers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pretrain.telemetry.waits import peer_wait


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Times of the steps between two readings, on this rank.

    Attributes:
        total: Seconds of all steps together.
        step: Seconds a step.
        data_wait: Seconds a step of waiting for batches; part of `step`.
        peer_wait: Seconds a step in collectives; part of `step`. None where they cannot be measured.
    """

    total: float
    step: float
    data_wait: float
    peer_wait: float | None


class StepTimer:
    """Measures from one reading to the next.

    Args:
        device: Where this rank computes; decides how time in collectives is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self._waits = peer_wait(device)
        self._start = time.perf_counter()
        self._data_wait = 0.0

    def before_last_step(self) -> None:
        """Called before the last step that the next reading covers."""
        self._waits.start()

    def add_data_wait(self, seconds: float) -> None:
        """Count seconds of waiting for batches."""
        self._data_wait += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A `with` block that belongs to no step."""
        start = time.perf_counter()
        with self._waits.paused():
            yield
        self._start += time.perf_counter() - start

    def read(self, steps: int) -> StepTimes:
        """Times of the `steps` steps since the last reading."""
        now = time.perf_counter()
        total, data_wait = now - self._start, self._data_wait
        self._start, self._data_wait = now, 0.0
        return StepTimes(total, total / steps, data_wait / steps, self._waits.read(steps))

    def restart(self) -> None:
        """Forget the time since the last reading."""
        self.read(1)

    def close(self) -> None:
        """Stop measuring."""
        self._waits.close()
