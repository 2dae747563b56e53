"""The local order of several data sets: lines of episodes, blocks and streams, from the layout of a step.

The strata of a data set's action slots lie along its line from the shortest samples to the longest. Its world
samples are all of one length, so their line is free: it is laid along the action strata in the order of the
sequences that these belong to, and cut evenly among the world slots in the order of theirs. So a sequence's
world samples come from the same episodes as its action samples, up to the borders::

    line of actions        | slot 0 | slot 1 | slot 2 | slot 3 |     sequences of the slots 1, 0, 1, 0
    line of world samples  | slot 1 | slot 3 | slot 0 | slot 2 |     of sequences           0, 0, 1, 1

Both kinds visit the blocks of episodes at the same times (`data.stream.order.visiting_order`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.stream.order.episode_blocks import EpisodeBlocks
from data.stream.order.layout import KINDS, DatasetWindows, StepLayout
from data.stream.order.local_sampler import LocalSampler, LocalStream
from data.stream.order.visit_table import Pieces
from data.stream.windows.episode_line import EpisodeLine

_Ints = NDArray[np.int64]
_LARGEST_BLOCK, _BLOCKS = 8, 16  # episodes of a block at most; blocks of a stratum at least
_BLOCKS_OF_A_POOL = 4  # at least


@dataclass(frozen=True, slots=True)
class LocalOrder:
    """The local order.

    Attributes:
        datasets: The data sets, with the windows as `sampler` numbers them.
        sampler: Draws the windows.
        blocks: Of each data set, episodes that are read together.
    """

    datasets: tuple[DatasetWindows, ...]
    sampler: LocalSampler
    blocks: tuple[EpisodeBlocks, ...]

    @classmethod
    def of(
        cls,
        datasets: Sequence[DatasetWindows],
        layout: StepLayout,
        pool_episodes: int,
        names: Sequence[str],
        visits: Sequence[str],
    ) -> LocalOrder:
        """Plan the order.

        Args:
            datasets: The data sets; their tables are of `EpisodeLine`.
            layout: Of a step.
            pool_episodes: Episodes that a slot draws from at a time.
            names: The seeds of each data set's kinds.
            visits: The seeds of the order of each data set's blocks.
        """
        placed, blocks = list[DatasetWindows](), list[EpisodeBlocks]()
        streams = list[LocalStream | None]()
        sequences = np.split(layout.sequences, np.cumsum(layout.counts.reshape(-1))[:-1])
        for number, dataset in enumerate(datasets):
            of_kinds = sequences[KINDS * number : KINDS * (number + 1)]
            size = block_size(dataset.tables[0].episodes, of_kinds, pool_episodes)
            lines, pieces = _lines(dataset, of_kinds, size)
            positions = np.arange(len(of_kinds[0])), _ranks(of_kinds[1])
            streams += [
                LocalStream(
                    lines[k],
                    pieces[k],
                    positions[k],
                    pool_episodes,
                    names[KINDS * number + k],
                    visits[number],
                )
                if len(positions[k])
                else None
                for k in range(KINDS)
            ]
            placed.append(replace(dataset, tables=lines))
            blocks.append(EpisodeBlocks(lines[0].episodes, size, lines[0 if len(of_kinds[0]) else 1].order))
        return cls(tuple(placed), LocalSampler(streams), tuple(blocks))


def block_size(episodes: int, of_kinds: Sequence[_Ints], pool_episodes: int) -> int:
    """Episodes of a block: the larger the strata, so that a stratum and a pool still hold several blocks."""
    slots = len(of_kinds[0]) or len(of_kinds[1]) or 1
    largest = min(_LARGEST_BLOCK, pool_episodes // _BLOCKS_OF_A_POOL)
    return int(np.clip(episodes // (_BLOCKS * slots), 1, max(largest, 1)))


def _lines(
    dataset: DatasetWindows, of_kinds: Sequence[_Ints], size: int
) -> tuple[tuple[EpisodeLine, EpisodeLine], tuple[Pieces, Pieces]]:
    """The lines of both kinds, and their pieces, in blocks of `size` episodes."""
    actions, worlds = dataset.tables
    if not isinstance(actions, EpisodeLine) or not isinstance(worlds, EpisodeLine):
        raise TypeError(f"{dataset.name}: the windows are not numbered along a line of episodes")
    edges = np.arange(-(-actions.episodes // size) + 1, dtype=np.int32) * np.int32(size)
    edges[-1] = actions.episodes
    blocks = Pieces(edges, np.arange(len(edges) - 1, dtype=np.int32))
    if not len(of_kinds[0]) or not len(of_kinds[1]):
        return (actions, worlds), (blocks, blocks)
    first, last = _strata(actions, len(of_kinds[0]))
    order = np.argsort(of_kinds[0], kind="stable")
    first, last = first[order], last[order]
    return (actions, worlds.along(_episodes(actions, first, last))), (blocks, _cut(first, last, size))


def _strata(line: EpisodeLine, count: int) -> tuple[_Ints, _Ints]:
    """First and last (exclusive) place on the line of the episodes of each of `count` strata.

    An episode that a border cuts belongs to the stratum after it; each episode to one, also one without
    windows.
    """
    borders = np.arange(1, count, dtype=np.int64) * line.count // count
    inner = line.places(borders)
    return np.concatenate([[0], inner]), np.concatenate([inner, [line.episodes]])


def _episodes(line: EpisodeLine, first: _Ints, last: _Ints) -> NDArray[np.int32]:
    """The episodes of ranges of a line, one range after the other."""
    places = _joined_ranges(first, last)
    return places if line.order is None else line.order[places]


def _cut(first: _Ints, last: _Ints, size: int) -> Pieces:
    """Pieces of ranges, laid one after the other, of a line in blocks of `size` episodes."""
    first, last = first[last > first], last[last > first]
    blocks, counts = _joined_ranges(first // size, -(-last // size)), -(-last // size) - first // size
    edges = np.maximum(blocks * np.int32(size), np.repeat(first.astype(np.int32), counts))
    edges += np.repeat((np.cumsum(last - first) - last).astype(np.int32), counts)  # where each range lies
    return Pieces(np.append(edges, np.int32((last - first).sum())), blocks)


def _joined_ranges(first: _Ints, last: _Ints) -> NDArray[np.int32]:
    """The numbers of several ranges, one range after the other; there may be millions."""
    sizes = last - first
    numbers = np.repeat((first - np.cumsum(sizes) + sizes).astype(np.int32), sizes)
    numbers += np.arange(len(numbers), dtype=np.int32)
    return numbers


def _ranks(sequences: _Ints) -> _Ints:
    """Rank of each slot in the order of its sequence."""
    ranks = np.empty_like(sequences)
    ranks[np.argsort(sequences, kind="stable")] = np.arange(len(sequences))
    return ranks
