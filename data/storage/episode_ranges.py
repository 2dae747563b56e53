"""Which episodes of a request are fetched together: one range of a shard for several neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from data.storage.episode_entry import EpisodeEntry

LARGEST_RANGE = 8 * 2**20
"""Bytes of a range of several episodes, at most; a single one may be larger."""
IN_VAIN = 1 / 8
"""Bytes between the episodes of a range, at most, as a share of the bytes of these episodes."""


def join_ranges(entries: Sequence[EpisodeEntry]) -> Iterator[list[int]]:
    """Divide episodes of one data set into ranges of their shards.

    Episodes of a shard share a range where they are adjacent, or where what lies between them is at most
    `IN_VAIN` of what is wanted; a range has at most `LARGEST_RANGE` bytes.

    Yields:
        The numbers (within `entries`) of the episodes of each range, in the order of the shard.
    """
    order = sorted(range(len(entries)), key=lambda number: (entries[number].shard, entries[number].offset))
    run: list[int] = []
    shard, begin, end, wanted = "", 0, 0, 0
    for number in order:
        entry = entries[number]
        last = entry.offset + entry.size
        vain = last - begin - wanted - entry.size
        joins = (
            entry.shard == shard
            and entry.offset >= end  # in a hostile index episodes may overlap
            and last - begin <= LARGEST_RANGE
            and vain <= IN_VAIN * (wanted + entry.size)
        )
        if run and not joins:
            yield run
            run = []
        if not run:
            shard, begin, wanted = entry.shard, entry.offset, 0
        run.append(number)
        end, wanted = last, wanted + entry.size
    if run:
        yield run
