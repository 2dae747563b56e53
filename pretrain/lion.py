"""Lion (Chen et al. 2023, arXiv 2302.06675), whose updates can be skipped without synchronising.

weight -= lr (sign(beta1 moment + (1 - beta1) gradient) + decay weight)
moment  = beta2 moment + (1 - beta2) gradient
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer.optimizer.lion import Lion
from torch import Tensor


class SkippableLion(Lion):
    """`pytorch_optimizer`'s Lion with the flag that torch's fused optimisers read.

    Attributes:
        found_inf: Scalar fp32 on the weights' device; 1: the update is skipped, and weights and moments keep
            their values, whatever the gradient. 0 or None: it is applied.
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Apply or skip the update: with learning rate 0 and the moment as gradient nothing changes."""
        if self.found_inf is None:
            return super().step(closure)
        skip = self.found_inf.bool()
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            self.init_group(group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    moment = self.state[parameter]["exp_avg"]
                    torch.where(skip, moment, parameter.grad, out=parameter.grad)
            # A zero-dimensional double is as exact as a number and leaves fp32 tensors fp32.
            group["lr"] = (~skip).double() * rate
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
