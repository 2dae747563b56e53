"""Bad steps: found on the device, left out, counted, and answered by going back.

A step is bad where its loss or gradient norm is not finite, or where its loss is a spike. The engine leaves
out the update of a bad step on all ranks. What the host has to know (a bad step, too many in a row, a wish
to end) is copied to it while the next step runs, so that no step waits for the device.
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
    """What a resumed run needs to guard on as if it had never stopped; kept in each checkpoint.

    Attributes:
        offset: Batches left out by going back: step `n` (from 0) trains on batch `n + offset`.
        rollbacks: Times that the run has gone back.
        skipped: Bad steps since the beginning of the run, also of stretches that it went back from.
        in_a_row: Bad steps at the end.
        good: Steps that `mean` and `variance` are of.
        mean: Of the recent losses.
        variance: Of the recent losses.
    """

    offset: int = 0
    rollbacks: int = 0
    skipped: int = 0
    in_a_row: int = 0
    good: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> GuardState:
        """That of a checkpoint's metadata; a fresh one where it holds none.

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

    def stored(self) -> dict[str, int | float]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """What all ranks know about a step.

    Attributes:
        step: Its number, from 1.
        skipped: Whether its update was left out.
        in_a_row: Bad steps up to it.
        stop: Whether some rank was asked to end.
        missing: Whether some rank had no batch for it, or for one before it: it does not count.
        loss: Of the global batch.
        gradient_norm: Before clipping.
        mean: Of the losses before.
        deviation: Standard deviation of the losses before.
    """

    step: int
    skipped: bool
    in_a_row: int
    stop: bool
    missing: bool
    loss: float
    gradient_norm: float
    mean: float
    deviation: float


class StepGuard:
    """Judges steps on the device; every rank has one and asks it alike.

    The mean and variance of the loss are those of all good steps at first, and decay over `memory` steps
    from then on::

        a = 1 / min(good steps, memory)    mean += a d    variance = (1 - a) (variance + a d^2)

    with d the distance from the mean before. Sums are fp64 scalars.

    Args:
        settings: What is a spike.
        device: Where the engine computes.
        state: Of the checkpoint that the run goes on from.

    Attributes:
        missing: Scalar bool on the device, whether the steps from some one on do not count (`leave_out`).
    """

    def __init__(self, settings: GuardConfig, device: torch.device, state: GuardState | None = None) -> None:
        self._settings = settings
        self._device = device
        self._pending: deque[_OnItsWay] = deque()
        self.missing = self._scalar(0.0).bool()
        self.restore(state or GuardState())

    def restore(self, state: GuardState) -> None:
        """Guard on from `state`; what is not yet on the host is forgotten."""
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

    def leave_out(self) -> None:
        """This rank has no batch: the update of its step and of all that follow is left out on all ranks.

        Other ranks get to know with the step's finding, and compute steps until then.
        """
        self.missing = torch.ones_like(self.missing)

    @property
    def asked(self) -> bool:
        """Whether a step of which this rank knows by now tells that the run is to end; waits for nothing."""
        known = [finding.arrived() for finding in self._pending if finding.here]
        return any(finding.stop or finding.missing for finding in known)

    def judge(self, loss: Tensor, gradient_norm: Tensor) -> Tensor:
        """Whether a step is bad, before any weight changes: scalar bool on the device.

        Args:
            loss: Scalar of the whole global batch.
            gradient_norm: Scalar, before clipping.
        """
        bad = ~(loss.isfinite() & gradient_norm.isfinite()) | self.missing
        if self._settings.spike is None:
            return bad
        limit = self._mean + self._settings.spike * self._variance.sqrt()
        return bad | ((self._good >= self._settings.memory) & (loss > limit))

    @torch.no_grad()
    def note(self, step: int, result: StepResult, asked: bool) -> None:
        """Take in what became of a step.

        Args:
            step: Its number, from 1.
            result: Of the engine; whether the update was left out is the same on every rank.
            asked: Whether this rank was asked to end; one that was speaks for all.
        """
        mean, deviation = self._mean, self._variance.sqrt()
        wishes = torch.stack([self._scalar(float(asked)), self.missing.double()])
        dist.all_reduce(wishes, dist.ReduceOp.MAX)
        stop, self.missing = wishes[0], wishes[1].bool()
        loss, skipped = result.loss.double(), result.skipped & ~self.missing
        self._in_a_row = torch.where(
            self.missing, self._in_a_row, torch.where(skipped, self._in_a_row + 1, 0)
        )
        self._skipped = self._skipped + skipped
        self._remember(result.skipped, loss)
        parts = (skipped, self._in_a_row, stop, self.missing, loss, result.gradient_norm, mean, deviation)
        self._pending.append(_OnItsWay(step, torch.stack([part.double() for part in parts])))

    def findings(self, everything: bool = False) -> list[Finding]:
        """What is new about the steps before the newest; `everything`: about that as well, which waits."""
        left = 0 if everything else 1
        found = []
        while len(self._pending) > left:
            found.append(self._pending.popleft().arrived())
        return found

    def _remember(self, skipped: Tensor, loss: Tensor) -> None:
        good = self._good + 1
        share = 1 / good.clamp(max=self._settings.memory)
        distance = loss - self._mean
        variance = (1 - share) * (self._variance + share * distance.square())
        # `where`, not a product: what is left out may be NaN.
        self._mean = torch.where(skipped, self._mean, self._mean + share * distance)
        self._variance = torch.where(skipped, self._variance, variance)
        self._good = torch.where(skipped, self._good, good)

    def _scalar(self, value: float) -> Tensor:
        return torch.full((), value, dtype=torch.float64, device=self._device)


@dataclass(slots=True)
class _OnItsWay:
    """A finding that is being copied to the host."""

    step: int
    values: Tensor
    _ready: torch.cuda.Event | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.values.is_cuda:
            on_host = torch.empty(self.values.shape, dtype=self.values.dtype, pin_memory=True)
            self.values = on_host.copy_(self.values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()

    @property
    def here(self) -> bool:
        """Whether `arrived` would not wait."""
        return self._ready is None or self._ready.query()

    def arrived(self) -> Finding:
        """Wait for it; after the next step was begun it is there."""
        if self._ready is not None:
            self._ready.synchronize()
        skipped, in_a_row, stop, missing, *numbers = self.values.tolist()
        return Finding(self.step, bool(skipped), int(in_a_row), bool(stop), bool(missing), *numbers)
