"""A random order of blocks in which any run of neighbouring blocks is spread evenly over the whole time.

The time of block i of a line is the radical inverse of i in base 2 (van der Corput), scrambled at random as
Owen does: of any 2^k blocks that begin at a multiple of 2^k, one lies in each 2^k-th of the time. So two
sequence places that share some blocks, in runs of any length, visit these at nearly the same time::

    blocks of one place      0 1 2 3 4 5 6 7        visited    3 7 5 1 2 6 0 4
    of another                     3 4 5 6          visited    3   5     6   4

The scramble is computed, not stored: each bit of the block's number is changed by a hash of the lower ones,
then the bits are reversed (Laine and Karras, "Stratified sampling for stochastic transparency", 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.stream.order.permutation import round_keys

_REVERSED_BYTES = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)
_ROUNDS = 4
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio


def visiting_times(blocks: NDArray[np.integer], name: str) -> NDArray[np.uint32]:
    """The time of each block, uint32 [N], all different for different blocks below 2^32.

    Args:
        blocks: Numbers of blocks along the line, int [N].
        name: The seed; another name, another order.
    """
    keys = round_keys(name).astype(np.uint32)  # the lower halves
    numbers = blocks.astype(np.uint32) + keys[-1]
    for key in keys[:_ROUNDS]:
        numbers ^= numbers * (key & np.uint32(0xFFFFFFFE))  # even: a bit is changed by lower ones alone
        numbers += key
    return _REVERSED_BYTES[numbers.byteswap().view(np.uint8)].view(np.uint32)


def spread(count: int) -> NDArray[np.int64]:
    """A permutation of 0 .. count - 1, int64 [count], of which any run of values lies evenly spread.

    By the golden ratio; the same for every seed.
    """
    return np.argsort(np.arange(count, dtype=np.uint64) * _GOLDEN, kind="stable")  # fractional parts
