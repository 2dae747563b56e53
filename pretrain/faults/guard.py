"""Bad steps: detected on the device, skipped and counted.

A step is bad if its loss or gradient norm is not finite, or if its loss is a spike. The engine skips the
update of a bad step on all ranks. What the host has to know (a bad step, too many in a row, a stop request)
is copied to it while the next step runs, so that no step waits for the device.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from data.errors import InputError
from pretrain.config import GuardConfig

if TYPE_CHECKING:
    from pretrain.parallel.engine import StepResult


@dataclass(slots=True)
class GuardState:
    """State with which a resumed run judges steps as if it had never stopped; stored in each checkpoint.

    Attributes:
        offset: Batches left out by rolling back: step `n` (from 0) trains on batch `n + offset`.
        rollbacks: Number of rollbacks so far.
        skipped: Bad steps since the beginning of the run, also of steps that were rolled back.
        in_a_row: Consecutive bad steps up to the newest step.
        good: Good steps that `mean` and `variance` are over.
        mean: Mean of the recent losses.
        variance: Variance of the recent losses.
    """

    offset: int = 0
    rollbacks: int = 0
    skipped: int = 0
    in_a_row: int = 0
    good: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> GuardState:
        """The state in a checkpoint's metadata; a fresh one if they hold none.

        Raises:
            InputError: Another version of this program wrote it.
        """
        try:
            return cls(**metadata.get("guard", {}))
        except TypeError as error:
            raise InputError(
                f"the checkpoint's guard state is {metadata['guard']}, expected the keys "
                f"{', '.join(asdict(cls()))}; begin a new run with checkpointing.start_from"
            ) from error

    def to_json(self) -> dict[str, int | float]:
        """The state as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """What all ranks know about a finished step.

    Attributes:
        step: Number of the step, from 1.
        skipped: Whether its update was skipped as bad.
        in_a_row: Consecutive bad steps up to it.
        stop: Whether some rank was asked to end.
        discarded: Whether some rank had no batch for it or for an earlier step: it does not count.
        loss: Loss of the global batch.
        gradient_norm: Gradient norm before clipping.
        recent_loss: Mean of the losses before.
        recent_deviation: Standard deviation of the losses before.
    """

    step: int
    skipped: bool
    in_a_row: int
    stop: bool
    discarded: bool
    loss: float
    gradient_norm: float
    recent_loss: float
    recent_deviation: float


class StepGuard:
    """Judges steps on the device; every rank has one and calls it at the same steps.

    Mean and variance of the loss are over all good steps at first, and decay over `memory` steps afterwards::

        a = 1 / min(good steps, memory)    mean += a d    variance = (1 - a) (variance + a d^2)

    where d is the distance from the previous mean. The state is kept in fp64 scalars.

    Args:
        settings: Limits of a spike.
        device: Device of the engine.
        state: State of the checkpoint that the run resumes from.

    Attributes:
        discarding: Scalar bool on the device, whether the newest step does not count (`discard_from_now`).
    """

    def __init__(self, settings: GuardConfig, device: torch.device, state: GuardState | None = None) -> None:
        self._settings = settings
        self._device = device
        self._pending: deque[_PendingVerdict] = deque()
        self.discarding = self._scalar(0.0).bool()
        self.restore(state or GuardState())

    def restore(self, state: GuardState) -> None:
        """Replace the state; verdicts that are not yet on the host are dropped."""
        self.offset, self.rollbacks = state.offset, state.rollbacks
        self._pending.clear()
        self._skipped, self._in_a_row, self._good = (
            self._scalar(value) for value in (state.skipped, state.in_a_row, state.good)
        )
        self._mean, self._variance = self._scalar(state.mean), self._scalar(state.variance)

    def state(self) -> GuardState:
        """The state after the newest step; waits for the device."""
        return GuardState(
            offset=self.offset,
            rollbacks=self.rollbacks,
            skipped=int(self._skipped),
            in_a_row=int(self._in_a_row),
            good=int(self._good),
            mean=float(self._mean),
            variance=float(self._variance),
        )

    def discard_from_now(self) -> None:
        """Skip the update of the next step and of all later ones on all ranks: this rank has no batch.

        Other ranks learn it from the verdict of that step, and compute steps until then.
        """
        self.discarding = torch.ones_like(self.discarding)

    @property
    def knows_stop(self) -> bool:
        """Whether a verdict that has reached this rank's host ends the run; does not wait."""
        known = [pending.wait() for pending in self._pending if pending.is_ready]
        return any(verdict.stop or verdict.discarded for verdict in known)

    def judge(self, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Whether a step is bad, before any weight changes: scalar bool on the device.

        Args:
            loss: Scalar, loss of the whole global batch.
            gradient_norm: Scalar, before clipping.
        """
        bad = ~(loss.isfinite() & gradient_norm.isfinite()) | self.discarding
        if self._settings.spike is None:
            return bad
        limit = self._mean + self._settings.spike * self._variance.sqrt()
        return bad | ((self._good >= self._settings.memory) & (loss > limit))

    @torch.no_grad()
    def record(self, step: int, result: StepResult, stop_requested: bool) -> None:
        """Update the state with the result of a step.

        Args:
            step: Number of the step, from 1.
            result: Result of the engine; `skipped` is the same on every rank.
            stop_requested: Whether this rank was asked to end; one such rank ends all.
        """
        mean, deviation = self._mean, self._variance.sqrt()
        flags = torch.stack([self._scalar(float(stop_requested)), self.discarding.double()])
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        stop, self.discarding = flags[0], flags[1].bool()
        loss, skipped = result.loss.double(), result.skipped & ~self.discarding
        self._in_a_row = torch.where(
            self.discarding, self._in_a_row, torch.where(skipped, self._in_a_row + 1, 0)
        )
        self._skipped = self._skipped + skipped
        self._update_statistics(result.skipped, loss)
        parts = (skipped, self._in_a_row, stop, self.discarding, loss, result.gradient_norm, mean, deviation)
        self._pending.append(_PendingVerdict(step, torch.stack([part.double() for part in parts])))

    def verdicts(self, newest: bool = False) -> list[StepVerdict]:
        """New verdicts, of the steps before the newest one.

        Args:
            newest: Return the newest step's verdict as well, which waits for the device.
        """
        remaining = 0 if newest else 1
        verdicts = []
        while len(self._pending) > remaining:
            verdicts.append(self._pending.popleft().wait())
        return verdicts

    def _update_statistics(self, skipped: Tensor, loss: Tensor) -> None:
        good = self._good + 1
        share = 1 / good.clamp(max=self._settings.memory)
        distance = loss - self._mean
        variance = (1 - share) * (self._variance + share * distance.square())
        # `where`, not a product: the loss of a skipped step may be NaN.
        self._mean = torch.where(skipped, self._mean, self._mean + share * distance)
        self._variance = torch.where(skipped, self._variance, variance)
        self._good = torch.where(skipped, self._good, good)

    def _scalar(self, value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float64, device=self._device)


@dataclass(slots=True)
class _PendingVerdict:
    """A verdict that is being copied to the host."""

    step: int
    values: Tensor
    _copied: torch.cuda.Event | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.values.is_cuda:
            on_host = torch.empty(self.values.shape, dtype=self.values.dtype, pin_memory=True)
            self.values = on_host.copy_(self.values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    @property
    def is_ready(self) -> bool:
        """Whether `wait` returns at once."""
        return self._copied is None or self._copied.query()

    def wait(self) -> StepVerdict:
        """Wait for the copy, which is complete once the next step has been started."""
        if self._copied is not None:
            self._copied.synchronize()
        skipped, in_a_row, stop, discarded, *numbers = self.values.tolist()
        return StepVerdict(self.step, bool(skipped), int(in_a_row), bool(stop), bool(discarded), *numbers)
