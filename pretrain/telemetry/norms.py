"""Norms of gradients and weights by group of parameters: which part of the network trains, and how fast.

ZeRO gives the optimiser flat pieces that hold parts of many parameters, and gradients exist only during its
update. A hook before the update reads them there, when they are complete sums over all micro-batches and
data-parallel ranks. Each rank squares the part that it holds; of ranks that hold the same part only the first
counts, and padding is left out. One vector is summed over the ranks.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.checkpoint.fragments import fragments
from pretrain.checkpoint.manifest import MASTER
from pretrain.model.action_head import PREFIX as ACTION_HEAD_PREFIX

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

GROUPS: tuple[str, ...] = ("embedding", "attention", "feed_forward", "norms", "head", "action_head")
_CLIPPING_EPSILON = 1e-6  # DeepSpeed divides gradients by max(1, (norm + 1e-6) / largest norm)


def group_of(name: str) -> str:
    """Group of a parameter of `pretrain.model.transformer.Transformer`; q/k norms belong to `norms`.

    Raises:
        ValueError: The name belongs to no group.
    """
    if name.startswith(ACTION_HEAD_PREFIX):
        return "action_head"
    parts = {"norm": "norms", "embed_tokens": "embedding", "self_attn": "attention", "mlp": "feed_forward"}
    parts["lm_head"] = "head"
    for part, group in parts.items():
        if part in name:
            return group
    raise ValueError(f"parameter {name} belongs to no group")


@dataclass(frozen=True, slots=True)
class _Piece:
    """The part of one parameter that this rank counts.

    Attributes:
        group: Index in the groups that the network has.
        master: fp32 weights, flat [n]: a view of the optimiser's memory.
    """

    group: int
    master: Tensor

    @property
    def address(self) -> int:
        """Memory address of the first weight."""
        return self.master.data_ptr()


class GroupNorms:
    """Norms of the groups, measured in the steps for which they are requested; every rank does the same.

    A step without a request costs one look at a flag.

    Args:
        engine: The engine in training.

    Attributes:
        groups: Those of `GROUPS` that the network has.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._requested = False
        found = {group_of(name) for name, _ in engine.module.named_parameters()}
        self.groups = tuple(group for group in GROUPS if group in found)
        self._squares = torch.zeros(2, len(self.groups), dtype=torch.float64, device=engine.groups.device)
        self._has_gradients = False
        self._pieces: list[_Piece] = []
        self._hook = engine.optimizer.register_step_pre_hook(self._on_update)

    def request(self) -> None:
        """Measure the next step. Call this before the step, and `read` after it."""
        self._requested, self._has_gradients = True, False
        self._squares.zero_()
        # At each request: memory moves when a checkpoint is loaded or state is offloaded to the host.
        pieces = [
            _Piece(self.groups.index(group_of(part.name)), part.states[MASTER])
            for part in fragments(self._engine)
            if part.is_writer
        ]
        self._pieces = sorted(pieces, key=lambda piece: piece.address)

    @torch.no_grad()
    def read(self) -> dict[str, float | None]:
        """Norms of the newest step; waits for the device.

        Returns:
            `gradient_norm/<group>` before clipping, None where the gradient was not finite or the update was
            left out; `parameter_norm/<group>` after the update. The squares of the gradient norms add up to
            the square of `StepResult.gradient_norm`.

        Raises:
            RuntimeError: `request` was not called before the step.
        """
        if not self._requested:
            raise RuntimeError("the norms of this step were not requested: call request() before the step")
        for piece in self._pieces:
            self._squares[1, piece.group] += _square(piece.master)
        dist.all_reduce(self._squares)
        gradients, parameters = self._squares.sqrt().tolist()
        factor = self._clipping_factor() if self._has_gradients else float("nan")
        self._requested, self._pieces = False, []
        norms: dict[str, float | None] = {}
        for group, value in zip(self.groups, gradients, strict=True):
            norms[f"gradient_norm/{group}"] = _finite(value * factor)
        for group, value in zip(self.groups, parameters, strict=True):
            norms[f"parameter_norm/{group}"] = _finite(value)
        return norms

    def close(self) -> None:
        """Remove the hook from the optimiser."""
        self._hook.remove()

    def _clipping_factor(self) -> float:
        """Divisor that DeepSpeed has applied to the gradients."""
        largest = self._engine.gradient_clipping
        if not largest:
            return 1.0
        norm = float(self._engine.deepspeed_engine.get_global_grad_norm())
        return max(1.0, (norm + _CLIPPING_EPSILON) / largest)

    @torch.no_grad()
    def _on_update(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Square the gradients that the optimiser is about to apply."""
        if not self._requested:
            return
        self._has_gradients = True
        addresses = [piece.address for piece in self._pieces]
        for group in optimizer.param_groups:
            for flat in group["params"]:
                if flat.grad is not None:
                    self._add_gradient(flat, addresses)

    def _add_gradient(self, flat: Tensor, addresses: list[int]) -> None:
        first = flat.data_ptr()
        gradient = flat.grad
        assert gradient is not None
        gradient = gradient.reshape(-1)
        for number in range(bisect_right(addresses, first - 1), len(addresses)):
            piece = self._pieces[number]
            start = (addresses[number] - first) // flat.element_size()
            if start >= flat.numel():
                break
            self._squares[0, piece.group] += _square(gradient[start : start + piece.master.numel()])


def _square(values: Tensor) -> Tensor:
    """Sum of squares, fp64 scalar, without a copy of the values."""
    return torch.linalg.vector_norm(values, dtype=torch.float32).double().square()


def _finite(value: float) -> float | None:
    return value if value - value == 0 else None
