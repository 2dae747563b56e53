"""The first pass of a backend through kernels that are compiled for it: its failure names backend and remedy.

A compiler or kernel that does not run here fails in the first forward or the first backward pass, in many
ways. Both are followed until they have worked once; then nothing is left of this on the way of a call.

    forward    the call itself
    backward   from the hook on the output's gradient to the hook on the queries' gradient; an error in
               between comes out of `backward()`, where `explained_backward` tells it apart

A kernel reports a fault only when the device is waited for, so this waits once after each first pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from data.errors import InputError
from pretrain.model.config import AttentionBackend

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

_LOG = logging.getLogger(__name__)
_INSTEAD: dict[AttentionBackend, str] = {
    "flex": "model.attention=sdpa",
    "flash": "model.attention=flex, or sdpa",
    "flash2": "model.attention=flex, or sdpa",
}
_MAX_TEXT = 300  # characters of the original message, the first of which say what it is


class _FirstPasses:
    """What has worked in this process.

    Attributes:
        forward: Backends whose forward pass has worked.
        done: Those of which nothing is left to follow; `sdpa` is torch's own.
        in_backward: The backend whose first backward pass is running.
    """

    def __init__(self) -> None:
        self.forward: set[AttentionBackend] = set()
        self.done: set[AttentionBackend] = {"sdpa"}
        self.in_backward: AttentionBackend | None = None


_passes = _FirstPasses()


def is_proven(backend: AttentionBackend) -> bool:
    """Whether both passes of a backend have worked in this process."""
    return backend in _passes.done


def attend_at_first(attend: Attend, backend: AttentionBackend, *inputs: Tensor) -> Tensor:
    """A call of a backend that is not proven.

    Args:
        attend: Of its mask.
        backend: Its name.
        inputs: Queries, keys and values.

    Raises:
        InputError: It is the first one and fails; names the backend, the original error and what to set.
        torch.OutOfMemoryError: As it is, also from within a compiler's error.
    """
    query, key, value = inputs
    if backend in _passes.forward:
        output = attend(query, key, value)
    else:
        try:
            output = attend(query, key, value)
            _wait(output)
        except Exception as error:  # of any compiler: raised again
            raise _explained(backend, "forward", error) from error
        _passes.forward.add(backend)
    if output.requires_grad and query.requires_grad:
        _follow_backward(backend, query, output)
    return output


def _follow_backward(backend: AttentionBackend, query: Tensor, output: Tensor) -> None:
    def begin(_: Tensor) -> None:
        if backend not in _passes.done:
            _passes.in_backward = backend

    def end(gradient: Tensor) -> None:
        if backend not in _passes.done:
            _wait(gradient)
            _passes.in_backward = None
            _passes.done.add(backend)

    output.register_hook(begin)
    query.register_hook(end)


@contextmanager
def explained_backward() -> Iterator[None]:
    """Around backward passes: a failure of a backend's first one is raised as in `attend_at_first`."""
    try:
        yield
    except Exception as error:  # raised again
        backend, _passes.in_backward = _passes.in_backward, None
        if backend is None:
            raise
        raise _explained(backend, "backward", error) from error


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(tensor.device)


def _explained(backend: AttentionBackend, direction: str, error: Exception) -> Exception:
    """The error to raise in place of another."""
    if (memory := _out_of_memory(error)) is not None:
        return memory
    if isinstance(error, InputError):
        return error
    _LOG.error("the first %s pass of attention on %s failed", direction, backend, exc_info=error)
    text = " ".join(str(error).split())
    if len(text) > _MAX_TEXT:
        text = text[:_MAX_TEXT].rstrip() + " ..."
    return InputError(
        f"attention backend {backend}: its first {direction} pass failed on this machine with "
        f"{type(error).__name__}: {text or 'no message'}; set {_INSTEAD[backend]} (the rank's log has the "
        "whole error)"
    )


def _out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """The error of the allocator that an error is, or was raised from."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return error
        error = error.__cause__ or error.__context__
    return None
