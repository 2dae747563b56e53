"""Exponential moving average of the weights (EMA): each rank averages the fp32 masters that it updates.

    ema = d_t ema + (1 - d_t) w,    d_t = min(decay, (1 + t) / (10 + t))

after update number t (from 0) since the average began. The warm-up of the decay (as in TensorFlow's
`ExponentialMovingAverage` with `num_updates`) lets the start fade soon: it weighs 1 / 10 after one update
and 1 / 92,378 after ten. A skipped step leaves the average and its count as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class WeightAverage:
    """The average of one rank's masters, beside them: nothing is gathered, and no rank waits for its device.

    Args:
        masters: fp32 tensors that the optimiser updates, all of one device; the average starts from them.
        decay: Of the average, above 0 and below 1.

    Attributes:
        decay: Of the average.
        updates: Scalar fp64 on the masters' device, updates that the average has followed.
    """

    def __init__(self, masters: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self._masters = list(masters)
        self._averages = [master.detach().clone() for master in self._masters]
        self._of_master = dict(zip(self._masters, self._averages, strict=True))
        self.updates = torch.zeros((), dtype=torch.float64, device=self._masters[0].device)

    def of(self, master: Tensor) -> Tensor:
        """The average of a master, fp32 of its shape: its own memory, so that writing to it changes it."""
        return self._of_master[master]

    @torch.no_grad()
    def follow(self, skipped: Tensor) -> None:
        """Move towards the masters after a step of the optimiser.

        Args:
            skipped: Scalar bool on any device: whether the step's update was skipped. Offloaded masters need
                it on the host, as their optimiser does.
        """
        applied = (~skipped).to(self.updates)
        decay = ((1 + self.updates) / (10 + self.updates)).clamp(max=self.decay)
        weight = (applied * (1 - decay)).float()
        weights = [weight] * len(self._masters)
        torch._foreach_lerp_(self._averages, self._masters, weights)  # pyright: ignore[reportPrivateImportUsage]
        self.updates += applied

    @torch.no_grad()
    def restart(self) -> None:
        """Start again from the masters as they are now."""
        for average, master in zip(self._averages, self._masters, strict=True):
            average.copy_(master)
        self.updates.zero_()

    def resume(self, updates: int) -> None:
        """Go on from averages that were written through `of`, which have followed so many updates."""
        self.updates.fill_(updates)
