"""Skipping of updates, decided on the device before the first weight changes.

ZeRO computes the gradient norm inside its step and calls the optimiser for one flat partition after the
other. So the decision is made when the optimiser is called for the first of them. AdamW's fused kernels read
the flag on the device (as `found_inf`, which torch has for loss scaling), and so does `SkippableLion`: if it
is set, weights, moments and count stay the same, and no rank synchronises with its device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

SkipRule = Callable[[Tensor, Tensor], Tensor]
"""(loss, gradient norm), scalars fp32 -> scalar bool: True to skip the update."""


class UpdateSkipper:
    """Decides whether the optimiser of one engine applies or skips each update.

    Args:
        optimizer: From `build_optimizer`: others ignore the flag.
        gradient_norm: Returns the global norm before clipping, once the optimiser is called.
        device: Of the engine.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_norm: Callable[[], Tensor | float],
        device: torch.device,
    ) -> None:
        self._optimizer: Any = optimizer
        self._gradient_norm = gradient_norm
        self._device = device
        self._judge: SkipRule | None = None
        self._loss = torch.zeros((), device=device)
        self._decision: tuple[Tensor, Tensor] | None = None
        optimizer.register_step_pre_hook(self._before_update)

    def start_step(self, loss: Tensor, skip_rule: SkipRule | None) -> None:
        """Start a step: to be called after the last backward pass, before the engine's step.

        Args:
            loss: Scalar fp32 of the whole global batch.
            skip_rule: Skips updates besides those whose loss or norm is not finite; None: only those.
        """
        self._loss, self._judge, self._decision = loss, skip_rule, None

    def finish_step(self) -> tuple[Tensor, Tensor]:
        """Gradient norm (scalar fp32) of the step, and whether its update was skipped (scalar bool)."""
        # At most of its stages DeepSpeed itself does not call the optimiser if the norm is not finite.
        norm, skipped = self._decision or self._decide()
        self._judge, self._decision = None, None
        return norm, skipped

    @torch.no_grad()
    def _before_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._decision is None:
            self._decision = self._decide()
        # An optimiser on the host synchronises with the device here, as offloading does anyway.
        device = next(group["params"][0].device for group in optimizer.param_groups if group["params"])
        self._optimizer.found_inf = self._decision[1].to(device, torch.float32)

    @torch.no_grad()
    def _decide(self) -> tuple[Tensor, Tensor]:
        norm = torch.as_tensor(self._gradient_norm(), dtype=torch.float32, device=self._device)
        norm = norm.where(norm.isfinite(), torch.inf)
        skip = ~(self._loss.isfinite() & norm.isfinite())
        if self._judge is not None:
            skip = skip | self._judge(self._loss, norm)
        # Ranks should agree; if they ever did not, their weights would diverge without an error.
        flag = skip.to(torch.float32)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return norm, flag.bool()
