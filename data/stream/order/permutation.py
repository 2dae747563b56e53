"""A shuffled order of any size that is computed, not stored.

A Feistel network over pairs (row, column) of a grid that holds the numbers 0 .. size - 1 is a bijection of
the grid; applying it again while the result lies outside 0 .. size - 1 makes it a bijection of the numbers
themselves (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). The grid has
less than one row too many, so it is hardly ever applied twice.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 8
_ONE = np.uint64(1)
_SHIFTS = tuple(map(np.uint64, (30, 27, 31)))
_FACTORS = tuple(map(np.uint64, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))


def round_keys(name: str) -> NDArray[np.uint64]:
    """The keys of a shuffle, uint64 [8]; another name gives another order."""
    digest = hashlib.blake2b(name.encode(), digest_size=8 * _ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def permute(
    positions: NDArray[np.int64],
    sizes: int | NDArray[np.int64],
    keys: NDArray[np.uint64],
    tweaks: NDArray[np.uint64] | None = None,
) -> NDArray[np.int64]:
    """Image of each position in its shuffle of 0 .. size - 1, for positions of several shuffles at once.

    The same on every machine and release of numpy. Time and memory grow with `len(positions)` only.

    Args:
        positions: int64 [N], in [0, size).
        sizes: Number of shuffled numbers: one value, or int64 [N], one for each position.
        keys: Keys of the shuffle (`round_keys`), uint64 [8] or, one for each position, [8, N].
        tweaks: uint64 [N], further seeds, one for each position; None: 0.

    Returns:
        int64 [N], in [0, size): a bijection of the positions.
    """
    if bool(np.any((positions < 0) | (positions >= sizes))):
        raise ValueError(f"positions {positions.min()} to {positions.max()} lie outside their shuffle")
    size = np.broadcast_to(np.asarray(sizes, np.uint64), positions.shape)
    rows, columns = _grid(size)
    keys = np.broadcast_to(keys.T, (len(positions), _ROUNDS)).T
    keys = keys if tweaks is None else keys ^ tweaks
    result = _shuffle_grid(positions.astype(np.uint64), rows, columns, keys)
    outside = np.flatnonzero(result >= size)
    while len(outside):
        result[outside] = _shuffle_grid(result[outside], rows[outside], columns[outside], keys[:, outside])
        outside = outside[result[outside] >= size[outside]]
    return result.astype(np.int64)


def _grid(sizes: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Rows and columns of the grid of each size: floor(sqrt(size - 1)) + 1 rows, and the columns needed.

    A floating-point root may be off by one, which integer arithmetic corrects.
    """
    least = np.maximum(sizes, _ONE) - _ONE
    root = np.sqrt(least.astype(np.float64)).astype(np.uint64)
    root -= root * root > least
    root += (root + _ONE) * (root + _ONE) <= least
    rows = root + _ONE
    return rows, (sizes + root) // rows


def _shuffle_grid(
    numbers: NDArray[np.uint64],
    rows: NDArray[np.uint64],
    columns: NDArray[np.uint64],
    keys: NDArray[np.uint64],
) -> NDArray[np.uint64]:
    """Bijection of 0 .. rows * columns - 1: row and column are shifted in turn by a hash of the other."""
    row, column = numbers // columns, numbers % columns
    for i in range(0, _ROUNDS, 2):
        row = (row + mix(column + keys[i]) % rows) % rows
        column = (column + mix(row + keys[i + 1]) % columns) % columns
    return row * columns + column


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea and Flood, 2014); uint64 arithmetic wraps."""
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _FACTORS[1]
    return x ^ (x >> _SHIFTS[2])
