"""A shuffled order of any size that is computed, not stored.

A Feistel network over pairs (row, column) of a grid that just holds the numbers 0 .. size - 1 is a
bijection of the grid; walking on while the result lies outside 0 .. size - 1 makes it one of the
numbers themselves (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The grid has
less than one row more than needed, so hardly any number walks.
"""

from __future__ import annotations

import hashlib
from math import isqrt

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8


def permute(positions: NDArray[np.int64], size: int, key: str) -> NDArray[np.int64]:
    """Where each position goes in the shuffle of 0 .. `size` - 1 that `key` names.

    The same on every machine and release of numpy. Time and memory grow with `len(positions)` only.

    Args:
        positions: int64 [N], in [0, `size`).
        size: How many numbers are shuffled.
        key: Any text; another text gives another order.

    Returns:
        int64 [N], in [0, `size`): a bijection of the positions.
    """
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < size:
        raise ValueError(f"positions {positions.min()} to {positions.max()} lie outside 0 to {size - 1}")
    rows = np.uint64(isqrt(max(size - 1, 0)) + 1)
    columns = np.uint64(-(-size // int(rows)))
    digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
    round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)
    result = _shuffle_grid(positions.astype(np.uint64), rows, columns, round_keys)
    outside = np.flatnonzero(result >= np.uint64(size))
    while len(outside):
        result[outside] = _shuffle_grid(result[outside], rows, columns, round_keys)
        outside = outside[result[outside] >= np.uint64(size)]
    return result.astype(np.int64)


def _shuffle_grid(
    numbers: NDArray[np.uint64], rows: np.uint64, columns: np.uint64, round_keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """Bijection of 0 .. rows * columns - 1: row and column in turn are shifted by a hash of the other."""
    row, column = numbers // columns, numbers % columns
    for i in range(0, _ROUNDS, 2):
        row = (row + _mix(column + round_keys[i]) % rows) % rows
        column = (column + _mix(row + round_keys[i + 1]) % columns) % columns
    return row * columns + column


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea and Flood, 2014); uint64 arithmetic wraps."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
