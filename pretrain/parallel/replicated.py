"""ZeRO stage 0: every data-parallel rank holds and updates all weights of its tensor-parallel shard.

DeepSpeed's own optimisers for this stage accumulate bf16 gradients in bf16 and report no norm in fp32. This
one does at every precision what the partitioned stages do: fp32 masters, micro-batches accumulated in fp32,
one norm over all ranks, clipping on the device. DeepSpeed's engine averages its gradients and calls it.
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
    """Masters, gradients and clipping around an optimiser, with the interface of DeepSpeed's optimisers.

    Args:
        optimizer: Over the network's parameters, which are replaced by their fp32 masters. A parameter in
            fp32 is its own master.
        gradient_clipping: Maximum global norm; 0: unlimited.
        groups: Of this rank.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, gradient_clipping: float, groups: ProcessGroups
    ) -> None:
        self.optimizer = optimizer
        self._gradient_clipping = gradient_clipping
        self._groups = groups
        self.masters: dict[nn.Parameter, Tensor] = {}
        self._global_grad_norm: Tensor | None = None  # the name that DeepSpeed expects
        for group in optimizer.param_groups:
            group["params"] = [self._master(parameter) for parameter in group["params"]]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser, over masters."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:
        """State of the optimiser by master."""
        return self.optimizer.state

    def get_grads_for_reduction(self) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        """Gradients that DeepSpeed averages over the data-parallel ranks, fp32; none of experts."""
        return list(self._gradients()), {}

    @torch.no_grad()
    def step(self) -> None:
        """Clip, update the masters and copy them to the network's parameters."""
        gradients = list(self._gradients())
        norm = self._norm()
        self._global_grad_norm = norm
        if self._gradient_clipping:
            excess = ((norm + _CLIPPING_EPSILON) / self._gradient_clipping).clamp(min=1.0)
            for gradient in gradients:
                gradient.mul_(1.0 / excess)
        self.optimizer.step()
        self.zero_grad()
        self.copy_masters_to_parameters()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Release the gradients."""
        for master in self.masters.values():
            master.grad = None

    @torch.no_grad()
    def copy_masters_to_parameters(self) -> None:
        """Copy the masters to the network's parameters, rounded to their dtype."""
        for parameter, master in self.masters.items():
            if master is not parameter:
                parameter.copy_(master)

    def _master(self, parameter: nn.Parameter) -> Tensor:
        if parameter.dtype == torch.float32:
            self.masters[parameter] = parameter
            return parameter
        master = parameter.detach().float().requires_grad_()
        self.masters[parameter] = master
        # A complete gradient is added to the sum at once, which frees its own memory.
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
        """Global norm, scalar fp32; parameters that tensor-parallel ranks replicate count once."""
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
