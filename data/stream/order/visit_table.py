"""The order in which sequence places visit the episodes of their strata, in one epoch.

A stratum is a run of windows along a line of episodes (`data.stream.windows.episode_line`). Where it has more
than P episodes, its pieces (blocks of neighbouring episodes, cut at the stratum's borders) are visited in the
order of `data.stream.order.visiting_order`, and pieces that follow each other form a pool of about P
episodes. The place draws from one pool after the other, and from each in a random order::

    visited pieces       5 5 5 | 1 1 1 | 7 7 | 2 2 2 | 6 6 6 | 4 4 4 ...     windows of blocks 5, 1, 7, ...
    pools                ------|---------------------|-------------------
    place draws          5 5 5   7 1 2 7 1 2 2 1       ...

The first pool of a place is shorter by a random share, so that the places of a step do not all change pools
at the same time; less than a quarter of a pool at either end of the epoch belongs to its neighbour. A stratum
of at most P episodes is one pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.stream.order.visiting_order import visiting_times
from data.stream.windows.episode_line import EpisodeLine

_Ints = NDArray[np.int64]
_LEAST = 0.25  # of a pool at either end of an epoch; a smaller rest belongs to the pool beside it


@dataclass(frozen=True, slots=True)
class Pieces:
    """A line of episodes cut into pieces.

    Attributes:
        edges: int32 [pieces + 1], place on the line of each piece's first episode; last: all episodes.
        blocks: int32 [pieces], number of the block that a piece is or belongs to.
    """

    edges: NDArray[np.int32]
    blocks: NDArray[np.int32]

    def at(self, places: _Ints) -> _Ints:
        """Number of the piece at each place of the line, int64 [N]."""
        return np.searchsorted(self.edges, places.astype(np.int32), side="right") - 1


@dataclass(frozen=True, slots=True)
class VisitTable:
    """Strata of some sequence places in visited order, one after the other; every array is int64.

    Attributes:
        begins: [places + 1], number of rows (windows) before each stratum.
        rows: [pieces], rows up to and including each piece.
        windows: [pieces], number of the first window of each piece.
        pools: [pools], rows up to and including each pool.
    """

    begins: _Ints
    rows: _Ints
    windows: _Ints
    pools: _Ints

    @classmethod
    def empty(cls) -> VisitTable:
        """A table of no place."""
        none = np.empty(0, np.int64)
        return cls(np.zeros(1, np.int64), none, none, none)

    def joined(self, other: VisitTable) -> VisitTable:
        """The places of both."""
        rows = self.begins[-1]
        return VisitTable(
            np.concatenate([self.begins, other.begins[1:] + rows]),
            np.concatenate([self.rows, other.rows + rows]),
            np.concatenate([self.windows, other.windows]),
            np.concatenate([self.pools, other.pools + rows]),
        )

    def pool_of(self, places: _Ints, rows: _Ints) -> tuple[_Ints, _Ints]:
        """First row within the stratum, and number of rows, of the pool of each row of a place, int64 [N]."""
        begins = self.begins[places]
        pools = np.searchsorted(self.pools, begins + rows, side="right")
        first = np.where(pools > 0, self.pools[pools - 1], 0)
        return first - begins, self.pools[pools] - first

    def pool_sizes(self, place: int) -> _Ints:
        """Rows of each pool of a place that has some, in order."""
        begin, end = self.begins[place], self.begins[place + 1]
        ends = self.pools[(self.pools > begin) & (self.pools <= end)]
        return np.diff(ends, prepend=begin)

    def windows_at(self, places: _Ints, rows: _Ints) -> _Ints:
        """Number of the window at each row of the visited strata, int64 [N]."""
        rows = self.begins[places] + rows
        pieces = np.searchsorted(self.rows, rows, side="right")
        before = np.where(pieces > 0, self.rows[pieces - 1], 0)
        return self.windows[pieces] + rows - before


def make_visits(
    line: EpisodeLine,
    pieces: Pieces,
    begins: _Ints,
    sizes: _Ints,
    shares: NDArray[np.float64],
    pool_episodes: int,
    name: str,
) -> VisitTable:
    """The table of some strata.

    Args:
        line: The windows.
        pieces: Of the line.
        begins: int64 [places], the first window of each stratum.
        sizes: int64 [places], its number of windows, above 0.
        shares: float64 [places], size of the first pool relative to the others, in [0, 1).
        pool_episodes: P.
        name: The seed of the visited order.
    """
    first, last = line.places(begins), line.places(begins + sizes - 1) + 1  # episodes of each stratum
    several = last - first > pool_episodes
    one, more = pieces.at(first), pieces.at(last - 1) + 1
    counts = np.where(several, more - one, 1)
    owners = np.repeat(np.arange(len(begins)), counts)
    numbers = np.arange(len(owners)) + np.repeat(one - np.cumsum(counts) + counts, counts)
    cut = several[owners]
    start = np.where(cut, np.maximum(pieces.edges[numbers], first[owners]), first[owners])
    end = np.where(cut, np.minimum(pieces.edges[numbers + 1], last[owners]), last[owners])
    windows = np.maximum(line.begins(start), begins[owners])
    rows = np.minimum(line.begins(end), (begins + sizes)[owners]) - windows
    times = visiting_times(pieces.blocks[numbers], name).astype(np.uint64)
    order = np.argsort(owners.astype(np.uint64) << np.uint64(32) | times, kind="stable")
    owners, rows, episodes = owners[order], np.cumsum(rows[order]), (end - start)[order]
    pools = _pools(owners, episodes, shares, pool_episodes)
    changes = (np.diff(pools) != 0) | (np.diff(owners) != 0)
    return VisitTable(
        np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        rows,
        windows[order],
        rows[np.append(np.flatnonzero(changes), len(rows) - 1)],
    )


def _pools(
    owners: _Ints, episodes: _Ints, shares: NDArray[np.float64], pool_episodes: int
) -> NDArray[np.float64]:
    """Number of the pool, within its stratum, of each visited piece of `episodes` episodes, [pieces]."""
    totals = np.bincount(owners, weights=episodes, minlength=len(shares))
    before = np.cumsum(episodes) - episodes - (np.cumsum(totals) - totals)[owners]
    counts = np.ceil(totals / pool_episodes)
    share, count = shares[owners], counts[owners]
    pools = np.floor((before + episodes / 2) * count / totals[owners] + 1 - share)
    least, most = share < _LEAST, count - (share > 1 - _LEAST)
    return np.where(count > 1, np.clip(pools, least, most), 0)
