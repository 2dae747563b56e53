"""Copies of a rank's shard in host memory, made while the next forward and backward passes run.

Forward and backward passes only read weights and moments, so a copy has until the next update to be made:
from a GPU on a stream of its own, from host memory by the thread that saves. The next change of weights or
moments waits for it: an update on the GPU's own stream, so that the host goes on.

A save should cost the training next to nothing of the interpreter's time, too: the plan of copies is made
once, and states that are neighbours in the optimiser's memory are copied together.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pretrain.checkpoint.boxed_tensor import BoxedTensor
from pretrain.checkpoint.commit import Shard
from pretrain.checkpoint.fragments import fragments, state_addresses

if TYPE_CHECKING:
    from pretrain.parallel.engine import Engine

_LARGEST_COPY = 1 << 28  # elements: pinned memory comes in powers of two, so a GiB at a time
_LARGEST_GAP = 1 << 16  # elements between two states that are copied as well, to copy both together


@dataclass(frozen=True, slots=True)
class Copy:
    """One range of the optimiser's memory and its place in host memory.

    Attributes:
        source: Contiguous fp32 [n]; held, so that its memory is not freed while it is being copied.
        target: The same, on the host; pinned where the source is on a GPU.
    """

    source: Tensor
    target: Tensor


def plan_copies(sources: Mapping[str, Tensor]) -> tuple[list[Copy], dict[str, Tensor]]:
    """Few copies that cover all sources.

    Args:
        sources: Contiguous fp32 [n] by name, any of them views of the same memory.

    Returns:
        The copies, and each source's own part of the targets by its name.
    """
    ordered = sorted(sources, key=lambda name: (_memory(sources[name]), sources[name].storage_offset()))
    runs: list[list[str]] = []
    for name in ordered:
        if runs and _continues(sources[runs[-1][0]], sources[runs[-1][-1]], sources[name]):
            runs[-1].append(name)
        else:
            runs.append([name])
    copies: list[Copy] = []
    parts: dict[str, Tensor] = {}
    for run in runs:
        first, last = sources[run[0]].detach(), sources[run[-1]]
        start = first.storage_offset()
        count = last.storage_offset() + last.numel() - start
        target = torch.empty(count, dtype=torch.float32, pin_memory=first.is_cuda)
        copies.append(Copy(first.as_strided((count,), (1,), start), target))
        for name in run:
            parts[name] = target.narrow(0, sources[name].storage_offset() - start, sources[name].numel())
    return copies, parts


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _continues(first: Tensor, last: Tensor, following: Tensor) -> bool:
    """Whether a range that begins with `first` and ends with `last` is copied together with `following`."""
    gap = following.storage_offset() - last.storage_offset() - last.numel()
    count = following.storage_offset() + following.numel() - first.storage_offset()
    return _memory(first) == _memory(following) and gap <= _LARGEST_GAP and count <= _LARGEST_COPY


class HostCopies:
    """Copies within host memory, made by the thread that calls `run` while another one trains.

    Args:
        copies: All of them on the host.
    """

    def __init__(self, copies: Sequence[Copy]) -> None:
        self._copies = copies
        self._done = threading.Event()
        self._done.set()
        self._waited = 0.0

    def start(self) -> None:
        """Begin a save: from now on `wait_before_change` waits for `run`."""
        self._done.clear()

    def run(self) -> None:
        """Copy. On one core, whatever torch's threads: the others belong to the training."""
        try:
            for copy in self._copies:
                np.copyto(copy.target.numpy(), copy.source.numpy())  # without the interpreter's lock
        finally:
            self._done.set()

    def wait_before_change(self) -> None:
        """Wait until `run` has ended, well or not."""
        start = time.perf_counter()
        self._done.wait()
        self._waited += time.perf_counter() - start

    def take_wait(self) -> float:
        """Seconds in `wait_before_change` since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited


class DeviceCopies:
    """Copies from a GPU on a stream of their own, behind the work that the training has queued so far.

    Args:
        copies: All of them from the current GPU to pinned memory.
        device: `torch.cuda`: its streams and events.
    """

    def __init__(self, copies: Sequence[Copy], device: Any = torch.cuda) -> None:
        self._copies, self._device = copies, device
        self._stream = device.Stream()
        self._done: Any = None
        self._waits: list[tuple[Any, Any]] = []  # when the training's stream was there, and the copies

    def start(self) -> None:
        """Begin a save: queue the copies; the host does not wait."""
        self._stream.wait_stream(self._device.current_stream())
        with self._device.stream(self._stream):
            for copy in self._copies:
                copy.target.copy_(copy.source, non_blocking=True)
            self._done = self._device.Event(enable_timing=True)
            self._done.record(self._stream)

    def run(self) -> None:
        """Wait until the copies are made, in the thread that saves."""
        self._done.synchronize()

    def wait_before_change(self) -> None:
        """Make what is queued on the training's stream from now on wait for the copies."""
        stream, reached = self._device.current_stream(), self._device.Event(enable_timing=True)
        reached.record(stream)
        stream.wait_event(self._done)
        self._waits.append((reached, self._done))

    def take_wait(self) -> float:
        """Seconds for which the GPU waited, as far as they are known; others are left for a later call."""
        seconds, waits, self._waits = 0.0, self._waits, []
        for reached, done in waits:
            if reached.query() and done.query():
                seconds += max(0.0, reached.elapsed_time(done)) / 1e3
            else:
                self._waits.append((reached, done))
        return seconds


class ShardStaging:
    """The host memory for one rank's shard of an engine, used by one save after the other.

    Args:
        engine: Whose state is copied.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._addresses: tuple[int, ...] = ()
        self._plan()
        for copy in self._copies:  # the memory is there from now on, not in the middle of the training
            copy.target.zero_()

    def start(self) -> Shard:
        """Begin to copy the state as it is now; the content is complete when `run` has returned.

        The copies of the save before must have been written. The engine calls `wait_before_change`.
        """
        if state_addresses(self._engine) != self._addresses:  # DeepSpeed has taken other memory
            self._plan()
        for copies in self._ways:
            copies.start()
        return self._shard

    def run(self) -> None:
        """Make the copies, or wait for them, in the thread that saves.

        Raises:
            RuntimeError: The GPU failed.
        """
        for copies in self._ways:
            copies.run()

    def wait_before_change(self) -> None:
        """Wait for the copies, in the training's thread, before weights or moments change."""
        for copies in self._ways:
            copies.wait_before_change()

    def take_wait(self) -> float:
        """Seconds for which changes have waited for copies since the last call."""
        return sum(copies.take_wait() for copies in self._ways)

    def _plan(self) -> None:
        held = [fragment for fragment in fragments(self._engine) if fragment.is_writer]
        sources = {
            f"{state}/{fragment.name}": values
            for fragment in held
            for state, values in fragment.states.items()
        }
        self._copies, parts = plan_copies(sources)
        on_device = [copy for copy in self._copies if copy.source.is_cuda]
        on_host = [copy for copy in self._copies if not copy.source.is_cuda]
        # The host's first: the device copies meanwhile.
        self._ways: list[HostCopies | DeviceCopies] = [HostCopies(on_host)] if on_host else []
        if on_device:
            self._ways.append(DeviceCopies(on_device))
        self._addresses = state_addresses(self._engine)
        tensors = {
            f"{state}/{fragment.name}": BoxedTensor(
                fragment.shape, fragment.boxes, parts[f"{state}/{fragment.name}"]
            )
            for fragment in held
            for state in fragment.states
        }
        self._shard = Shard(tensors, self._engine.module.config)
