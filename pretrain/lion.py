"""Lion (Chen et al. 2023, arXiv 2302.06675), whose updates can be left out without waiting for the device.

weight -= lr (sign(beta1 moment + (1 - beta1) gradient) + decay weight)
moment  = beta2 moment + (1 - beta2) gradient
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer.optimizer.lion import Lion
from torch import Tensor


class GatedLion(Lion):
    """`pytorch_optimizer`'s Lion with the flag that torch's fused optimisers read.

    Attributes:
        found_inf: Scalar fp32 where the weights are; 1: the update is left out, and weights and moments keep
            their values, whatever the gradient holds. None: nothing is left out.
    """

    found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update, or leave it out: at the rate 0 with the moment for the gradient nothing moves."""
        if self.found_inf is None:
            return super().step(closure)
        left_out = self.found_inf.bool()
        rates = [group["lr"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, rates, strict=True):
            self.init_group(group)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    moment = self.state[parameter]["exp_avg"]
                    torch.where(left_out, moment, parameter.grad, out=parameter.grad)
            # As exact as the number: a double without dimensions leaves fp32 tensors fp32.
            group["lr"] = (~left_out).double() * rate
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
