"""A stable order of many small numbers, sorted part by part so that it takes little memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PART = 1 << 17  # numbers handled at a time


def parts(count: int) -> Iterator[slice]:
    """Slices of at most `PART` that cover 0 .. count - 1 in order: there may be millions of episodes."""
    return (slice(begin, begin + PART) for begin in range(0, count, PART))


def stable_order(keys: NDArray[np.integer]) -> NDArray[np.int32]:
    """A stable order, int32 [E]. Keys below 65,536 are sorted part by part, with 4 bytes an episode."""
    if not len(keys) or int(keys.min()) < 0 or int(keys.max()) >= 1 << 16:
        return np.argsort(keys, kind="stable").astype(np.int32)
    kinds = int(keys.max()) + 1
    counts = sum(
        (np.bincount(keys[part], minlength=kinds) for part in parts(len(keys))), np.zeros(kinds, np.int64)
    )
    begins = np.cumsum(counts) - counts  # position of the next episode of each key
    order = np.empty(len(keys), np.int32)
    for part in parts(len(keys)):
        small = keys[part].astype(np.uint16)  # numpy sorts these by radix, in a fraction of the time
        within = np.argsort(small, kind="stable")
        small, sizes = small[within], np.bincount(small, minlength=kinds)
        before = np.cumsum(sizes) - sizes
        order[begins[small] - before[small] + np.arange(len(small))] = part.start + within
        begins += sizes
    return order
