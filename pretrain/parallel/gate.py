"""Bad steps: whether an update is left out is decided on the device, before the first weight changes.

ZeRO knows the norm of the gradient only inside its step, and hands the optimiser one flat piece after the
other. So the decision is taken when the optimiser is called for the first of them. AdamW's fused kernels read
the flag on the device (as `found_inf`, which torch made for loss scaling), and `GatedLion` does: where it is
set, weights, moments and count stay what they were, and no rank waits for its device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Judge = Callable[[Tensor, Tensor], Tensor]


class UpdateGate:
    """Stands before the optimiser of one engine.

    Args:
        optimizer: That changes the weights, from `build_optimizer`: others do not look at the flag.
        gradient_norm: Gives the global norm before clipping, once the optimiser is called.
        device: Where the engine computes.
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
        self._judge: Judge | None = None
        self._loss = torch.zeros((), device=device)
        self._decision: tuple[Tensor, Tensor] | None = None
        optimizer.register_step_pre_hook(self._before_update)

    def begin(self, loss: Tensor, judge: Judge | None) -> None:
        """Announce a step. Call it after the last backward pass, before the engine's step.

        Args:
            loss: Scalar fp32 of the whole global batch.
            judge: Takes loss and gradient norm, scalars fp32, and gives a scalar bool: True where the update
                must be left out. None: where one of them is not finite.
        """
        self._loss, self._judge, self._decision = loss, judge, None

    def end(self) -> tuple[Tensor, Tensor]:
        """Gradient norm (scalar fp32) and whether the update was left out (scalar bool) of the step."""
        # DeepSpeed itself does without an update where the norm is not finite, at most of its stages.
        norm, left_out = self._decision or self._decide()
        self._judge, self._decision = None, None
        return norm, left_out

    @torch.no_grad()
    def _before_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._decision is None:
            self._decision = self._decide()
        # On the host where the optimiser is: waits there for the device, as offloading does anyway.
        where = next(group["params"][0].device for group in optimizer.param_groups if group["params"])
        self._optimizer.found_inf = self._decision[1].to(where, torch.float32)

    @torch.no_grad()
    def _decide(self) -> tuple[Tensor, Tensor]:
        found = torch.as_tensor(self._gradient_norm(), dtype=torch.float32, device=self._device)
        norm = found.where(found.isfinite(), torch.inf)
        left_out = ~(self._loss.isfinite() & norm.isfinite())
        if self._judge is not None:
            left_out = left_out | self._judge(self._loss, norm)
        # Numbers are the same on every rank; were one ever not, weights would part without an error.
        flag = left_out.to(torch.float32)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return norm, flag.bool()
