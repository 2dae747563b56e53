"""What the backward pass makes again instead of keeping it.

- `none`: autograd keeps what it needs.
- `full`: a layer keeps its input and runs again.
- `selective`: a layer keeps the results of matrix products and of attention. What element-wise functions
  made of them is made again when the backward pass asks for it, and so is a gathered sequence. Sums over
  ranks are not repeated.

`selective` is not `torch.utils.checkpoint`'s policy of that name: that one replays every operation of the
layer, ZeRO's own gathering of weights included, and finds other operations than it recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint


def run_layer(policy: str, layer: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """The layer's result under a recompute policy."""
    if policy == "full":
        result = checkpoint(layer, *inputs, use_reentrant=False)
        assert isinstance(result, Tensor)
        return result
    if policy == "selective":
        with _Recorder():
            return layer(*inputs)
    return layer(*inputs)


def element_wise(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """A pure function's result; under `selective` only its inputs are kept."""
    recorder = _recorder.get()
    if recorder is None or not torch.is_grad_enabled():
        return function(*inputs)
    result = _Remade.apply(function, *inputs)
    recorder.note(result, function, inputs)
    return result


def gathered(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function that keeps nothing for its gradient; under `selective` its result is not kept either."""
    result = function(x)
    recorder = _recorder.get()
    if recorder is not None and _storage(result) != _storage(x):
        recorder.note(result, function, (x,))
    return result


class _Again:
    """How to make a result again.

    The value stays until autograd lets go of everything that saved the result: each node of the graph
    does so when it is done.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: list[Tensor | _Saved]) -> None:
        self._function = function
        self._inputs = inputs
        self._value: Tensor | None = None

    @torch.no_grad()
    def read(self) -> Tensor:
        """The result, made on the first call."""
        if self._value is None:
            inputs = [each.read() if isinstance(each, _Saved) else each for each in self._inputs]
            self._value = self._function(*inputs)
        return self._value


class _Saved:
    """One view of a result that is made again."""

    def __init__(self, again: _Again, like: Tensor) -> None:
        self._again = again
        self._geometry = like.size(), like.stride(), like.storage_offset()

    def read(self) -> Tensor:
        """The same numbers in the same layout."""
        return self._again.read().as_strided(*self._geometry)


class _Recorder:
    """While open, notes which results can be made again, and keeps the way instead of the tensor."""

    def __init__(self) -> None:
        # The results themselves are held too, until the layer is done: their storage is the key.
        self._results: dict[int, tuple[Tensor, _Again]] = {}
        self._hooks = saved_tensors_hooks(self._pack, _unpack)

    def __enter__(self) -> None:
        self._token = _recorder.set(self)
        self._hooks.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        _recorder.reset(self._token)
        self._results.clear()

    def note(self, result: Tensor, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
        """Remember how a tensor was made."""
        self._results[_storage(result)] = (result, _Again(function, [self._kept(each) for each in inputs]))

    def _kept(self, tensor: Tensor) -> Tensor | _Saved:
        packed = self._pack(tensor)
        if isinstance(packed, _Saved):
            return packed
        # ZeRO may have taken a parameter's values away by then; those used here are a few vectors.
        owner = packed if packed._base is None else packed._base
        return packed.detach().clone() if isinstance(owner, nn.Parameter) else packed.detach()

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        found = self._results.get(_storage(tensor))
        return tensor if found is None else _Saved(found[1], tensor)


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


def _unpack(packed: Tensor | _Saved) -> Tensor:
    return packed.read() if isinstance(packed, _Saved) else packed


def _storage(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, shared by its views."""
    return tensor.untyped_storage()._cdata


class _Remade(Function):
    """Runs a function without keeping anything inside it; the backward pass runs it again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*inputs)
        return function(*(each.detach() for each in inputs))  # as when it is made again: one compilation

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        wanted = ctx.needs_input_grad[1:]
        inputs = [
            saved.detach().requires_grad_(want) for saved, want in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            result = ctx.function(*inputs)
        needed = [each for each in inputs if each.requires_grad]
        found = iter(torch.autograd.grad(result, needed, gradients))
        return None, *(next(found) if want else None for want in wanted)
