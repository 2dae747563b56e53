"""Activation recomputation: what the backward pass recomputes instead of saving it.

- `none`: autograd saves what it needs.
- `full`: a layer saves its input and runs again in the backward pass.
- `selective`: a layer saves the results of matrix products and of attention. Results of element-wise
  functions are recomputed when the backward pass needs them. Sequences that tensor-parallel ranks gather are
  gathered again (`pretrain.parallel.column_layers`); reductions over ranks are not repeated.

`selective` does not use `torch.utils.checkpoint`'s selective contexts: those dispatch every operation of the
layer through Python, in both passes, also save the operands of a reduction over ranks and repeat it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from pretrain.model.config import RecomputePolicy

R = TypeVar("R")


def run_layer(policy: RecomputePolicy, layer: Callable[..., R], *inputs: Any) -> R:
    """Run a layer under a recompute policy.

    Args:
        policy: `none`, `selective` or `full`.
        layer: Called with `inputs`.
        inputs: Of any type; tensors among them may need gradients.
    """
    if policy == "full":
        return cast(R, checkpoint(layer, *inputs, use_reentrant=False))
    if policy == "selective":
        with _Recorder():
            return layer(*inputs)
    return layer(*inputs)


def element_wise(function: Callable[..., R], *inputs: Tensor) -> R:
    """Apply a pure function to tensors; under `selective` only these are saved for the backward pass.

    Args:
        function: Returns a tensor or a tuple of tensors.
        inputs: Its arguments.
    """
    recorder = _recorder.get()
    if recorder is None or not torch.is_grad_enabled():
        return function(*inputs)
    recomputation = recorder.recomputation(function, inputs)
    result = _RecomputedFunction.apply(recomputation, *inputs)
    recorder.register(result, recomputation)
    return result


def is_selective() -> bool:
    """Whether a layer is running under `selective`."""
    return _recorder.get() is not None


def recomputed(result: Tensor, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return a result that has been computed; under `selective` save how to compute it again instead.

    Args:
        result: With its gradient, which stays as it is.
        function: Pure; computes the same values as `result` from `inputs`.
        inputs: Its arguments.
    """
    recorder = _recorder.get()
    if recorder is not None and torch.is_grad_enabled():
        recorder.register(result, recorder.recomputation(function, inputs, differentiated=False))
    return result


class _Recomputation:
    """A function call that can be repeated; its result stays until the last node that needs it has run."""

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: list[_SavedTensor | _RecomputedView],
        needs_grad: list[bool],
    ) -> None:
        self.function = function
        self._inputs = inputs
        self._needs_grad = needs_grad
        self._computed: tuple[list[Tensor], tuple[Tensor, ...]] | None = None

    def inputs_and_results(self) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The inputs as leaves, and the results with their graph; computed on the first call."""
        if self._computed is None:
            if not self._inputs:
                raise RuntimeError("a second backward pass through a layer under selective recompute")
            pairs = zip(self._inputs, self._needs_grad, strict=True)
            inputs = [each.read().detach().requires_grad_(needed) for each, needed in pairs]
            with torch.enable_grad():
                self._computed = inputs, _results(self.function(*inputs))
        return self._computed

    def release(self) -> None:
        """Release all tensors: the graph itself lives until the backward pass is over."""
        self._inputs, self._needs_grad, self._computed = [], [], None


class _SavedTensor:
    """A saved tensor, checked for in-place changes, as torch does without hooks."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self._version = tensor._version

    def read(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: It was modified in place since it was saved.
        """
        if self._tensor._version != self._version:
            raise RuntimeError(
                f"a tensor {tuple(self._tensor.shape)} that the backward pass needs was modified in place"
            )
        return self._tensor


class _RecomputedView:
    """A view of a recomputed result.

    Args:
        recomputation: Of the result.
        number: Of the result among those of the function.
        like: The view, for its size, strides and offset.
    """

    def __init__(self, recomputation: _Recomputation, number: int, like: Tensor) -> None:
        self._recomputation, self._number = recomputation, number
        self._geometry = like.size(), like.stride(), like.storage_offset()

    def read(self) -> Tensor:
        """The same values in the same layout."""
        _, results = self._recomputation.inputs_and_results()
        return results[self._number].detach().as_strided(*self._geometry)


class _Recorder:
    """Within its context, autograd saves how to recompute registered results instead of the tensors."""

    def __init__(self) -> None:
        # Holds the results themselves until the layer is done: their storage is the key.
        self._results: dict[int, tuple[Tensor, _Recomputation, int]] = {}
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

    def recomputation(
        self, function: Callable[..., Any], inputs: tuple[Tensor, ...], differentiated: bool = True
    ) -> _Recomputation:
        """A call of the function with these inputs that can be repeated, for its gradient, too."""
        saved = [self._save(each) for each in inputs]
        return _Recomputation(function, saved, [differentiated and each.requires_grad for each in inputs])

    def register(self, result: Tensor | tuple[Tensor, ...], recomputation: _Recomputation) -> None:
        """Recompute this result, or all of a tuple, instead of saving it."""
        for number, each in enumerate(_results(result)):
            self._results[_storage(each)] = (each, recomputation, number)

    def _save(self, tensor: Tensor) -> _SavedTensor | _RecomputedView:
        # ZeRO may have released a parameter's values by then; those used here are a few vectors.
        owner = tensor if tensor._base is None else tensor._base
        return self._pack(tensor.detach().clone() if isinstance(owner, nn.Parameter) else tensor.detach())

    def _pack(self, tensor: Tensor) -> _SavedTensor | _RecomputedView:
        registered = self._results.get(_storage(tensor))
        return _SavedTensor(tensor) if registered is None else _RecomputedView(*registered[1:], tensor)


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)


def _unpack(packed: _SavedTensor | _RecomputedView) -> Tensor:
    return packed.read()


def _results(returned: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (returned,) if isinstance(returned, Tensor) else returned


def _storage(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, shared by its views."""
    return tensor.untyped_storage()._cdata


class _RecomputedFunction(Function):
    """A function call that saves nothing; the backward pass repeats it."""

    @staticmethod
    def forward(ctx: Any, recomputation: _Recomputation, *inputs: Tensor) -> Any:
        ctx.recomputation = recomputation
        return recomputation.function(*(each.detach() for each in inputs))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError("no gradients of gradients under selective recompute")
        inputs, results = ctx.recomputation.inputs_and_results()
        ctx.recomputation.release()  # nodes that saved the result have run before
        leaves = [each for each in inputs if each.requires_grad]
        input_gradients = iter(torch.autograd.grad(results, leaves, gradients))
        return None, *(next(input_gradients) if each.requires_grad else None for each in inputs)
