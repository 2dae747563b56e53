"""What the backward pass makes again instead of keeping it.

- `none`: autograd keeps what it needs.
- `full`: a layer keeps its input and runs again.
- `selective`: a layer keeps the results of matrix products and of attention. What element-wise functions
  made of them is made again when the backward pass asks for it, and so is a gathered sequence. Sums over
  ranks are not repeated.

`selective` does not use `torch.utils.checkpoint`'s selective contexts: those send every operation of the
layer through Python, in both passes, keep the parts of a sum over ranks too and communicate it again.
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
    again = recorder.again(function, inputs)
    result = _Remade.apply(again, *inputs)
    recorder.note(result, again)
    return result


def gathered(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function that keeps nothing for its gradient; under `selective` its result is not kept either."""
    result = function(x)
    recorder = _recorder.get()
    if recorder is not None and _storage(result) != _storage(x):
        recorder.note(result, recorder.again(function, (x.detach(),)))
    return result


class _Again:
    """How to make a result again; the value stays until the last node that needs it is done."""

    def __init__(
        self, function: Callable[..., Tensor], inputs: list[_Kept | _Saved], wanted: list[bool]
    ) -> None:
        self.function = function
        self._inputs = inputs
        self._wanted = wanted
        self._made: tuple[list[Tensor], Tensor] | None = None

    def inputs_and_result(self) -> tuple[list[Tensor], Tensor]:
        """The result and the inputs that it has gradients for; made on the first call."""
        if self._made is None:
            if not self._inputs:
                raise RuntimeError("a second backward pass through a layer under selective recompute")
            pairs = zip(self._inputs, self._wanted, strict=True)
            inputs = [each.read().detach().requires_grad_(want) for each, want in pairs]
            with torch.enable_grad():
                self._made = inputs, self.function(*inputs)
        return self._made

    def forget(self) -> None:
        """Let go of everything: the graph itself lives until the backward pass is over."""
        self._inputs, self._wanted, self._made = [], [], None


class _Kept:
    """A tensor that is kept. Under hooks torch does not check that nobody changes it meanwhile: this does."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = tensor._version

    def read(self) -> Tensor:
        """The tensor."""
        if self._tensor._version != self._version:
            raise RuntimeError(
                f"a tensor {tuple(self._tensor.shape)} that the backward pass needs was modified in place"
            )
        return self._tensor


class _Saved:
    """One view of a result that is made again."""

    def __init__(self, again: _Again, like: Tensor) -> None:
        self._again = again
        self._geometry = like.size(), like.stride(), like.storage_offset()

    def read(self) -> Tensor:
        """The same numbers in the same layout."""
        _, result = self._again.inputs_and_result()
        return result.detach().as_strided(*self._geometry)


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

    def again(self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> _Again:
        """The way to call a function with these inputs once more."""
        kept = [self._kept(each) for each in inputs]
        return _Again(function, kept, [each.requires_grad for each in inputs])

    def note(self, result: Tensor, again: _Again) -> None:
        """Remember how a tensor was made."""
        self._results[_storage(result)] = (result, again)

    def _kept(self, tensor: Tensor) -> _Kept | _Saved:
        # ZeRO may have taken a parameter's values away by then; those used here are a few vectors.
        owner = tensor if tensor._base is None else tensor._base
        return self._pack(tensor.detach().clone() if isinstance(owner, nn.Parameter) else tensor.detach())

    def _pack(self, tensor: Tensor) -> _Kept | _Saved:
        found = self._results.get(_storage(tensor))
        return _Kept(tensor) if found is None else _Saved(found[1], tensor)


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


def _unpack(packed: _Kept | _Saved) -> Tensor:
    return packed.read()


def _storage(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, shared by its views."""
    return tensor.untyped_storage()._cdata


class _Remade(Function):
    """Runs a function without keeping anything inside it; the backward pass runs it again."""

    @staticmethod
    def forward(ctx: Any, again: _Again, *inputs: Tensor) -> Tensor:
        ctx.again = again
        return again.function(*(each.detach() for each in inputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("no gradients of gradients under selective recompute")
        inputs, result = ctx.again.inputs_and_result()
        ctx.again.forget()  # whoever saved the result came before
        found = iter(torch.autograd.grad(result, [each for each in inputs if each.requires_grad], gradients))
        return None, *(next(found) if each.requires_grad else None for each in inputs)
