"""Memory of batches is reused, and never while a view of it exists."""

from __future__ import annotations

import numpy as np
import torch

from data.stream.buffer_pool import BufferPool


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def test_memory_is_reused_when_the_last_view_is_gone() -> None:
    pool = BufferPool()
    first = pool.take((5, 2, 100))
    where, row = address(first), first[3, 1, 10:]
    row[:] = 7
    assert first.shape == (5, 2, 100)
    assert first.dtype == np.int32
    del first
    second = pool.take((5, 2, 100))  # `row` still looks at the first
    second[:] = 0
    assert (row == 7).all()
    tensor = torch.from_numpy(row)
    del row
    third = pool.take((5, 2, 100))
    third[:] = 0
    assert (tensor == 7).all()
    del tensor
    assert address(pool.take((5, 2, 100))) == where


def test_a_larger_array_gets_new_memory() -> None:
    pool = BufferPool()
    pool.take((10,))[:] = 1
    large = pool.take((1000,))
    large[:] = np.arange(1000)
    small = pool.take((10,))
    small[:] = -1
    assert np.array_equal(large, np.arange(1000))
