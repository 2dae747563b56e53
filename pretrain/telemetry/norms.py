"""Norms of gradients and weights by group of parameters: which part of the network learns, and how fast.

ZeRO gives the optimiser flat pieces that hold parts of many parameters, and gradients exist only while it
updates them. So they are looked at there, by a hook before the update, when they are whole sums over all
micro-batches and data-parallel ranks. Each rank squares what it holds; of ranks that hold the same only the
first counts, and padding not at all. One sum of a vector over the ranks is all that is communicated.
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

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

GROUPS: tuple[str, ...] = ("embedding", "attention", "feed_forward", "norms", "head")
_CLIPPING_EPSILON = 1e-6  # DeepSpeed divides gradients by max(1, (norm + 1e-6) / largest norm)


def group_of(name: str) -> str:
    """The group of a parameter of `pretrain.model.transformer.Transformer`; q/k norms are norms.

    Raises:
        ValueError: A name that belongs to none.
    """
    parts = {"norm": "norms", "embed_tokens": "embedding", "self_attn": "attention", "mlp": "feed_forward"}
    parts["lm_head"] = "head"
    for part, group in parts.items():
        if part in name:
            return group
    raise ValueError(f"parameter {name} belongs to no group")


@dataclass(frozen=True, slots=True)
class _Piece:
    """What this rank counts of one parameter.

    Attributes:
        group: Number in `GROUPS`.
        master: Its fp32 weights, flat [n]: a view of the optimiser's memory.
    """

    group: int
    master: Tensor

    @property
    def address(self) -> int:
        """Where in memory the weights begin."""
        return self.master.data_ptr()


class GroupNorms:
    """Norms of the groups, measured in the steps for which they are wanted; every rank does the same.

    A step that is not wanted costs nothing but one look at a flag.

    Args:
        engine: Whose training is looked at.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._wanted = False
        self._squares = torch.zeros(2, len(GROUPS), dtype=torch.float64, device=engine.groups.device)
        self._seen = False
        self._pieces: list[_Piece] = []
        self._hook = engine.optimizer.register_step_pre_hook(self._look)

    def want(self) -> None:
        """Measure in the next step. Call it before the step, and `read` after it."""
        self._wanted, self._seen = True, False
        self._squares.zero_()
        # Anew each time: memory moves where a checkpoint is loaded or state goes to the host and back.
        mine = [
            _Piece(GROUPS.index(group_of(part.name)), part.states[MASTER])
            for part in fragments(self._engine)
            if part.is_writer
        ]
        self._pieces = sorted(mine, key=lambda piece: piece.address)

    @torch.no_grad()
    def read(self) -> dict[str, float | None]:
        """Norms of the step just done; waits for the device.

        Returns:
            `gradient_norm/<group>` before clipping, None where the gradient was not finite or nothing was
            updated; `parameter_norm/<group>` after the update. Squared and summed over the groups the
            former give the square of `StepResult.gradient_norm`.

        Raises:
            RuntimeError: `want` was not called before the step.
        """
        if not self._wanted:
            raise RuntimeError("the norms of this step were not wanted: call want() before it")
        for piece in self._pieces:
            self._squares[1, piece.group] += _square(piece.master)
        dist.all_reduce(self._squares)
        gradients, parameters = self._squares.sqrt().tolist()
        clipped = self._clipping_factor() if self._seen else float("nan")
        self._wanted, self._pieces = False, []
        found: dict[str, float | None] = {}
        for group, value in zip(GROUPS, gradients, strict=True):
            found[f"gradient_norm/{group}"] = _finite(value * clipped)
        for group, value in zip(GROUPS, parameters, strict=True):
            found[f"parameter_norm/{group}"] = _finite(value)
        return found

    def close(self) -> None:
        """Take the hook out of the optimiser."""
        self._hook.remove()

    def _clipping_factor(self) -> float:
        """What DeepSpeed has divided the gradients by."""
        largest = self._engine.gradient_clipping
        if not largest:
            return 1.0
        norm = float(self._engine.deepspeed_engine.get_global_grad_norm())
        return max(1.0, (norm + _CLIPPING_EPSILON) / largest)

    @torch.no_grad()
    def _look(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Square the gradients that the optimiser is about to use: of one flat piece, or of several."""
        if not self._wanted:
            return
        self._seen = True
        addresses = [piece.address for piece in self._pieces]
        for group in optimizer.param_groups:
            for flat in group["params"]:
                if flat.grad is not None:
                    self._add_gradient(flat, addresses)

    def _add_gradient(self, flat: Tensor, addresses: list[int]) -> None:
        begin = flat.data_ptr()
        gradient = flat.grad
        assert gradient is not None
        gradient = gradient.reshape(-1)
        for number in range(bisect_right(addresses, begin - 1), len(addresses)):
            piece = self._pieces[number]
            start = (addresses[number] - begin) // flat.element_size()
            if start >= flat.numel():
                break
            self._squares[0, piece.group] += _square(gradient[start : start + piece.master.numel()])


def _square(values: Tensor) -> Tensor:
    """Sum of squares, fp64 scalar, without a second copy of the values."""
    return torch.linalg.vector_norm(values, dtype=torch.float32).double().square()


def _finite(value: float) -> float | None:
    return value if value - value == 0 else None
