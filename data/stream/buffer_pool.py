"""Memory of batches that is reused once no view of it is left.

A batch of some megabytes in fresh memory costs more in page faults than in computation: the system clears
the pages that it hands out, and takes them back when the batch is dropped.
"""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray


class BufferPool:
    """Arrays of int32 whose memory is reused when the last view of it is gone; for any threads.

    The pool never holds more arrays than were in use at the same time.
    """

    def __init__(self) -> None:
        self._free: deque[NDArray[np.int32]] = deque()

    def take(self, shape: tuple[int, ...]) -> NDArray[np.int32]:
        """An array of this shape with undefined content."""
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
    """The base of all views of one array, which therefore lives exactly as long as they do."""

    def __init__(self, memory: NDArray[np.int32]) -> None:
        self.__array_interface__ = memory.__array_interface__
