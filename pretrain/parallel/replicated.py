"""ZeRO stage 0: every data-parallel rank keeps and updates all weights of its share of the layers.

DeepSpeed's own optimisers for this stage add bf16 gradients up in bf16 and report no norm in fp32. This one
does at every precision what the partitioned stages do: fp32 masters, micro-batches added up in fp32, one
norm over all ranks, clipping on the device. DeepSpeed's engine averages its gradients and calls it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.parallel.groups import ProcessGroups

_CLIPPING_EPSILON = 1e-6  # as DeepSpeed at its other stages


class ReplicatedOptimizer:
    """Masters, gradients and clipping around an optimiser; has what DeepSpeed's engine asks of one.

    Args:
        optimizer: Over the network's parameters; it is given their fp32 masters instead. A parameter in
            fp32 is its own master.
        gradient_clipping: Largest global norm; 0: not limited.
        groups: Of this rank.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, gradient_clipping: float, groups: ProcessGroups
    ) -> None:
        self.optimizer = optimizer
        self._gradient_clipping = gradient_clipping
        self._groups = groups
        self.masters: dict[nn.Parameter, Tensor] = {}
        self._global_grad_norm: Tensor | None = None  # under this name DeepSpeed looks for it
        for group in optimizer.param_groups:
            group["params"] = [self._master(parameter) for parameter in group["params"]]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of the optimiser."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        """Of the optimiser, by master."""
        return self.optimizer.state

    def get_grads_for_reduction(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """What DeepSpeed averages over the data-parallel ranks: fp32 sums; none of experts."""
        return list(self._gradients()), {}

    @torch.no_grad()
    def step(self) -> None:
        """Clip, update the masters and let the network's parameters follow."""
        gradients = list(self._gradients())
        norm = self._norm()
        self._global_grad_norm = norm
        if self._gradient_clipping:
            excess = ((norm + _CLIPPING_EPSILON) / self._gradient_clipping).clamp(min=1.0)
            for gradient in gradients:
                gradient.mul_(1.0 / excess)
        self.optimizer.step()
        self.zero_grad()
        self.follow_masters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for master in self.masters.values():
            master.grad = None

    @torch.no_grad()
    def follow_masters(self) -> None:
        """Round the masters to the network's parameters."""
        for parameter, master in self.masters.items():
            if master is not parameter:
                parameter.copy_(master)

    def _master(self, parameter: nn.Parameter) -> Tensor:
        if parameter.dtype == torch.float32:
            self.masters[parameter] = parameter
            return parameter
        master = parameter.detach().float().requires_grad_()
        self.masters[parameter] = master
        # As soon as a gradient is whole it goes into the sum, and its own memory is free.
        parameter.register_post_accumulate_grad_hook(self._add_gradient)
        return master

    def _add_gradient(self, parameter: Any) -> None:
        master = self.masters[parameter]
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad += parameter.grad
        parameter.grad = None

    def _gradients(self) -> Iterator[Tensor]:
        for master in self.masters.values():
            if master.grad is not None:
                yield master.grad

    def _norm(self) -> Tensor:
        """Global norm, scalar fp32; what tensor-parallel ranks hold whole counts once."""
        counted = [
            master.grad
            for parameter, master in self.masters.items()
            if master.grad is not None
            and (self._groups.tensor_rank == 0 or getattr(parameter, "tensor_model_parallel", False))
        ]
        squares = torch.nn.utils.get_total_norm(counted).to(self._groups.device).square()
        if self._groups.tensor is not None:
            dist.all_reduce(squares, group=self._groups.tensor)
        return squares.sqrt()
