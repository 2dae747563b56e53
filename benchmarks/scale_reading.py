"""Requests of one node to the store, by replaying the plan of its ranks: which episodes miss every memory.

Each rank has a ring of tokenised episodes, of which the first read is overwritten first; the ranks of a node
may share a cache, of which the first stored is removed first. No episode is read: the plan says which are
needed. All nodes are alike, so one in the middle stands for all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.stream.order.plan import DataPlan

POOL_EPISODES = DataConfig().shuffle_episodes
_WHOLE_WINDOWS = 6_000_000  # of the node, of an epoch that is replayed whole
_PART, _PART_WINDOWS = 6_000, 600_000  # steps, windows of the node: of the part of a longer one, at most
_WARM_SHARE, _WARM_MOST = 0.04, 20_000  # of the epoch, steps: replayed before it, until memories are filled


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """What the ranks of a node hold.

    Attributes:
        ranks: Data-parallel ranks of the node.
        peers: Tensor-parallel peers of each, which read the same for themselves.
        ring_steps: Time steps that a rank holds.
        cache_steps: Time steps in the cache that they share; 0: there is none.
    """

    ranks: int
    peers: int
    ring_steps: int
    cache_steps: int


@dataclass(frozen=True, slots=True)
class NodeRequests:
    """Requests of one node.

    Attributes:
        of_step: Mean of a step, once the memories are filled or over a whole epoch.
        episodes: Episodes that they fetch, mean of a step.
        first: Requests of each of the first steps of a training.
        epoch_steps: Steps of an epoch of action samples.
    """

    of_step: float
    episodes: float
    first: NDArray[np.int64]
    epoch_steps: float


class _Held:
    """Episodes in a memory of fixed size, the first stored is removed first.

    Attributes:
        is_filled: Whether something has been removed.
    """

    def __init__(self, lengths: NDArray[np.integer], steps: int) -> None:
        self._lengths, self._free = lengths, steps
        self._order: deque[int] = deque()
        self._present = np.zeros(len(lengths), bool)
        self.is_filled = False

    def missing(self, episodes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the episodes that it does not hold."""
        return episodes[~self._present[episodes]]

    def add(self, episodes: NDArray[np.int64]) -> None:
        """Store episodes that it does not hold."""
        self._present[episodes] = True
        self._order.extend(episodes.tolist())
        self._free -= int(self._lengths[episodes].sum())
        while self._free < 0:
            self.is_filled = True
            oldest = self._order.popleft()
            self._present[oldest] = False
            self._free += int(self._lengths[oldest])


def node_requests(
    plan: DataPlan, data: int, lengths: NDArray[np.integer], node: NodeMemory, first_steps: int
) -> NodeRequests:
    """Replay the middle node of a training over one data set.

    Args:
        plan: The order.
        data: Data-parallel ranks of the training.
        lengths: int [E], time steps of each episode.
        node: Its ranks and memories.
        first_steps: Steps of `NodeRequests.first`.
    """
    epoch = plan.datasets[0].tables[0].count / int(plan.layout.counts[0, 0])
    rank = min(data // 2, data - node.ranks)
    first = _Replay(plan, data, rank, lengths, node)
    begin = first.steps(0, min(first_steps, int(np.ceil(epoch))))
    windows = int(plan.layout.counts.sum()) * node.ranks // data
    if epoch * windows <= _WHOLE_WINDOWS:
        rest = first.steps(len(begin), int(np.ceil(epoch)))
        counts = np.concatenate([begin, rest])
    else:
        middle = int(epoch) // 2
        part = max(min(_PART, _PART_WINDOWS // windows), 1)
        # The two kinds drift apart by some per cent of an epoch: what one has read, the other still needs.
        warm = max(part, min(int(_WARM_SHARE * epoch), _WARM_MOST))
        later = _Replay(plan, data, rank, lengths, node)
        step = middle - warm
        while step < middle and not later.is_filled:
            later.steps(step, step + part)
            step += part
        counts = later.steps(step, step + part)
    requests, episodes = counts.mean(axis=0).tolist()
    return NodeRequests(requests, episodes, begin[:, 0], epoch)


class _Replay:
    def __init__(
        self, plan: DataPlan, data: int, rank: int, lengths: NDArray[np.integer], node: NodeMemory
    ) -> None:
        self._plan, self._node = plan, node
        self._first, _ = plan.share(rank, data)
        _, self._last = plan.share(rank + node.ranks - 1, data)
        self._each = (self._last - self._first) // node.ranks
        self._rings = [_Held(lengths, node.ring_steps) for _ in range(node.ranks)]
        self._cache = _Held(lengths, node.cache_steps) if node.cache_steps else None
        # As the episode memory does: blocks are read where it holds all that the places draw from at a time.
        self._blocks = plan.blocks[0] if _open_steps(plan, data, lengths) <= node.ring_steps else None

    @property
    def is_filled(self) -> bool:
        """Whether every memory has removed something."""
        memories = [*self._rings, *([] if self._cache is None else [self._cache])]
        return all(memory.is_filled for memory in memories)

    def steps(self, begin: int, end: int) -> NDArray[np.int64]:
        """Requests and fetched episodes of steps `begin` to `end` (exclusive), int64 [steps, 2]."""
        counts = [self._step(step) for step in range(begin, end)]
        return np.array(counts, np.int64).reshape(-1, 2)

    def _step(self, step: int) -> tuple[int, int]:
        windows = self._plan.step(step, self._first, self._last)
        of_rank = (windows.sequences - self._first) // self._each
        requests = episodes = 0
        for number, ring in enumerate(self._rings):
            needed = np.unique(windows.episodes[of_rank == number])
            missing = self._with_blocks(ring, ring.missing(needed))
            if not len(missing):
                continue
            ring.add(missing)
            fetched, times = missing, self._node.peers
            if self._cache is not None:
                fetched, times = self._cache.missing(missing), 1
                self._cache.add(fetched)
            requests += times * _runs(fetched)
            episodes += times * len(fetched)
        return requests, episodes

    def _with_blocks(self, ring: _Held, missing: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._blocks is None or not len(missing):
            return missing
        together = np.unique([other for episode in missing.tolist() for other in self._blocks.of(episode)])
        return ring.missing(together)


def _open_steps(plan: DataPlan, data: int, lengths: NDArray[np.integer]) -> float:
    """Time steps of the episodes that the places of a rank draw from at a time (local order)."""
    counts = plan.layout.counts[0]
    pools = np.minimum(POOL_EPISODES, len(lengths) / np.maximum(counts, 1))
    return min(float(counts @ pools) / data / len(lengths), 1.0) * int(lengths.sum())


def _runs(episodes: Sequence[int] | NDArray[np.int64]) -> int:
    """Ranges that neighbouring episodes make up."""
    return int((np.diff(episodes) != 1).sum()) + 1 if len(episodes) else 0
