"""Time that a rank spends waiting for its peers; the rest of a step is the rank's own time.

Ranks step together, so a step takes the same time on all of them, and the slowest rank is the one that waits
least. Time in collectives is waiting plus transfer; the transfer takes about the same time on all ranks, so
differences between ranks are waiting.

- gloo: the host blocks in `Work.wait`. Only the thread that made the counter is timed; other threads (such as
  the one that writes a checkpoint) delay no step.
- NCCL: a kernel spins on the GPU until all peers have arrived. NCCL's flight recorder times each kernel where
  TORCH_NCCL_ENABLE_TIMING=1 was set before the process groups were made; it holds the newest
  TORCH_NCCL_TRACE_BUFFER_SIZE collectives. Reading it does not wait for the device.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d


class PeerWait(Protocol):
    """Counts the seconds that this rank spends in collectives."""

    def start(self) -> None:
        """Called before the last step that the next reading covers."""
        ...

    def read(self, steps: int) -> float | None:
        """Seconds a step, mean of the last `steps` or of the newest one; None where not measured."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """A `with` block that belongs to no step."""
        ...

    def close(self) -> None:
        """Stop counting."""
        ...


def peer_wait(device: torch.device) -> PeerWait:
    """The counter for ranks that compute on this kind of device."""
    return KernelWait() if device.type == "cuda" else BlockingWait()


class BlockingWait:
    """Seconds that the host blocks in `Work.wait`, in the thread that makes this."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._thread = threading.get_ident()
        self._original = dist.Work.wait
        dist.Work.wait = self._counted()  # type: ignore[method-assign]

    def start(self) -> None:
        """Do nothing: all steps are counted."""

    def read(self, steps: int) -> float:
        """Seconds a step since the last reading."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds / steps

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing in a `with` block."""
        before = self._seconds
        yield
        self._seconds = before

    def close(self) -> None:
        """Restore torch's own method."""
        dist.Work.wait = self._original  # type: ignore[method-assign]

    def _counted(self) -> Callable[..., Any]:
        original = self._original

        def wait(work: dist.Work, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != self._thread:
                return original(work, *args, **kwargs)
            start = time.perf_counter()
            try:
                return original(work, *args, **kwargs)
            finally:
                self._seconds += time.perf_counter() - start

        return wait


class KernelWait:
    """Seconds of this rank's NCCL kernels in the newest step, from NCCL's flight recorder."""

    def __init__(self) -> None:
        self._previous = -1

    def start(self) -> None:
        """Count only collectives that are recorded from now on."""
        self._previous = max((int(entry["record_id"]) for entry in _recorded()), default=-1)

    def read(self, steps: int) -> float | None:
        """Seconds of the newest step; None without timing."""
        return kernel_seconds(_recorded(), self._previous)

    def paused(self) -> AbstractContextManager[None]:
        """Do nothing: only what runs between `start` and `read` is counted."""
        return nullcontext()

    def close(self) -> None:
        """Do nothing: torch was not changed."""


def kernel_seconds(entries: Sequence[Mapping[str, Any]], after: int) -> float | None:
    """Seconds of the collectives with a record id above `after`; None where none of them was timed.

    Args:
        entries: Entries of the flight recorder: `record_id`, and `duration_ms` once it is known.
        after: Record id.
    """
    timed = [
        float(entry["duration_ms"])
        for entry in entries
        if int(entry["record_id"]) > after and entry.get("duration_ms") is not None
    ]
    return sum(timed) / 1e3 if timed else None


def _recorded() -> list[dict[str, Any]]:
    dump = getattr(_distributed_c10d, "_dump_nccl_trace_json", None)
    if dump is None:  # a build of torch without NCCL
        return []
    return json.loads(dump(includeCollectives=True, onlyActive=False)).get("entries", [])
