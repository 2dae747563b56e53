"""Batches of a training, with placeholders once a batch is late and the run is asked to end.

A read of an object store that is unreachable is retried for minutes, while the other ranks wait in the middle
of the step. A rank that knows of a stop request then takes part in the step with placeholder batches and has
the step discarded on all ranks (`StepGuard.discard_from_now`), so that all of them end with the step before.
"""

from __future__ import annotations

import logging
import time

from data.contracts import PackedBatch
from data.stream.loader import TokenStream
from pretrain.faults.guard import StepGuard
from pretrain.faults.preemption import Preemption
from pretrain.parallel.groups import ProcessGroups

MAX_WAIT_SECONDS = 5.0  # for a batch, once the run is asked to end
_POLL_SECONDS = 0.5

_LOG = logging.getLogger(__name__)


class BatchFeed:
    """Gives this rank its micro-batches.

    Args:
        stream: Stream of the training split.
        groups: Process groups of this rank.
        guard: Discards the steps from a missing batch on.
        preemption: Knows whether this rank was asked to end.
    """

    def __init__(
        self, stream: TokenStream, groups: ProcessGroups, guard: StepGuard, preemption: Preemption
    ) -> None:
        self._stream, self._groups = stream, groups
        self._guard, self._preemption = guard, preemption
        self._gave_up = False

    def next_batches(self, position: int) -> list[PackedBatch]:
        """The micro-batches of global batch `position`; placeholders once a batch has been given up.

        Raises:
            InputError: A shard is missing or damaged, or its store was unreachable for too long.
        """
        share = (position, self._groups.data_rank, self._groups.mesh.data)
        if not self._gave_up and self._wait_for(*share):
            return self._stream.micro_batches(*share)
        self._give_up(position)
        return self._stream.placeholder_batches(*share)

    def _wait_for(self, position: int, data_rank: int, data_size: int) -> bool:
        """Wait for the batch; False if the run is to end and the batch is later than allowed."""
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        while not self._stream.is_ready(position, data_rank, data_size, _POLL_SECONDS):
            stop = self._preemption.requested(waiting=True) or self._guard.knows_stop
            if stop and time.monotonic() >= deadline:
                return False
        return True

    def _give_up(self, position: int) -> None:
        if not self._gave_up:
            self._gave_up = True
            self._guard.discard_from_now()
            _LOG.warning(
                "batch %d has not come within %g s and the training is to end; it ends without it",
                position,
                MAX_WAIT_SECONDS,
            )
