"""The batches of a training; what a rank does whose batch does not come while the run is asked to end.

A read of an object store that is away is tried again for minutes, and the other ranks wait in the middle of
the step meanwhile. A rank that knows of the wish takes part in the step with a stand-in of its batch and has
the step left out on all ranks (`StepGuard.leave_out`), so that all of them end with the step before.
"""

from __future__ import annotations

import sys
import time

from data.contracts import PackedBatch
from data.stream.loader import TokenStream
from pretrain.faults.guard import StepGuard
from pretrain.faults.preemption import Preemption
from pretrain.parallel.groups import ProcessGroups

PATIENCE = 5.0  # seconds that a batch may take before a wish to end is not kept waiting for it
_SECONDS_BETWEEN_LOOKS = 0.5


class Feed:
    """Asks the stream for this rank's batches.

    Args:
        stream: Of the training split.
        groups: This rank's groups.
        guard: Told when a batch is missing.
        preemption: Whether the run is asked to end.
    """

    def __init__(
        self, stream: TokenStream, groups: ProcessGroups, guard: StepGuard, preemption: Preemption
    ) -> None:
        self._stream, self._groups = stream, groups
        self._guard, self._preemption = guard, preemption
        self._gave_up = False

    def next(self, position: int) -> list[PackedBatch]:
        """The micro-batches of global batch `position`; stand-ins of them once they are waited for no longer.

        Raises:
            InputError: A shard is missing or broken, or its store was away for too long.
        """
        share = (position, self._groups.data_rank, self._groups.mesh.data)
        if self._gave_up or not self._comes(*share):
            self._give_up(position)
            return self._stream.placeholder_batches(*share)
        return self._stream.micro_batches(*share)

    def _comes(self, position: int, data_rank: int, data_size: int) -> bool:
        """Wait for the batch, or until the run is to end and the batch has had its time."""
        end = time.monotonic() + PATIENCE
        while not self._stream.is_ready(position, data_rank, data_size, _SECONDS_BETWEEN_LOOKS):
            wished = self._preemption.asked(waiting=True) or self._guard.asked
            if wished and time.monotonic() >= end:
                return False
        return True

    def _give_up(self, position: int) -> None:
        if not self._gave_up:
            self._gave_up = True
            print(
                f"rank {self._groups.rank}: batch {position} has not come within {PATIENCE:g} s and the "
                "training is to end; it ends without it",
                file=sys.stderr,
                flush=True,
            )
            self._guard.leave_out()
