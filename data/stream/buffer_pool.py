"""Memory for batches that is used again once nobody looks at it any more.

A batch of some megabytes in fresh memory costs more in page faults than in work: the system hands out
empty pages, which it has to clear, and takes them back when the batch is dropped.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray


class BufferPool:
    """Arrays of int32 whose memory comes back when the last view of it is gone; for any threads.

    It never holds more than were in use at the same time.
    """

    def __init__(self) -> None:
        self._free: deque[NDArray[np.int32]] = deque()

    def take(self, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """An array of this shape; what is in it is undefined."""
        size = int(np.prod(shape))
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(size, np.int32)
        if len(memory) < size:
            memory = np.empty(size, np.int32)
        lease = _Lease(memory)
        weakref.finalize(lease, self._free.append, memory).atexit = False
        return np.asarray(lease)[:size].reshape(shape)


class _Lease:
    """What all views of one array have as their base, so that it lives exactly as long as they."""

    def __init__(self, memory: NDArray[np.int32]) -> None:
        self.__array_interface__ = memory.__array_interface__
