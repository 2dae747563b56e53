"""The token stream with memory for one episode in ten: 2,000 episodes, 8 sequences a step, as of one rank.

little memory, full     the full order: nearly every window is of an episode that is not in memory, and costs
a read of all of it
little, full, cache     the same where all episodes are in the cache of the node: only windows are read
little memory, local    the local order, whose places draw from so few episodes that these are in memory
little, local, later    the same some epochs later, when the places of action and of world samples draw from
different episodes
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from benchmarks.stream_data import CHUNK, HISTORY
from data.config import CacheConfig, DataConfig
from data.storage.episode_cache import EpisodeCache
from data.storage.episode_reader import read_episodes
from data.storage.index import DatasetIndex
from data.stream.loader import TokenStream
from pretrain.config import TrainerConfig

FULL, CACHED = "little memory, full", "little, full, cache"
LOCAL, LATER = "little memory, local", "little, local, later"
LEAST = 51_500
"""Windows a CPU second of `LOCAL` and `LATER`: five times those of the full order before."""
POOL = 1
"""Episodes that a place draws from at a time in `LOCAL`: those of a step have to fit into the memory."""
_LATER_STEP = 40_000  # some six epochs of the data set, in which the kinds drift apart by several per cent
_EPISODES_OF_A_MEGABYTE = 9  # tokenised


def measure(
    options: Namespace, url: str, cache: Path, timed: Callable[[str, Callable[[], int]], None]
) -> None:
    """Measure one round of each way.

    Args:
        options: Of `benchmarks.stream`.
        url: The data set, of `options.little_episodes` episodes.
        cache: Folder of the cache of the node.
        timed: Measures a way: its name, and what reads windows and returns their number.
    """
    _fill(url, cache)
    steps = 4 if options.smoke else 50
    for way, begin, count, config in (
        (FULL, 0, steps, DataConfig(url, shuffle="full")),
        (CACHED, 0, steps, DataConfig(url, shuffle="full", cache=CacheConfig(str(cache)))),
        (LOCAL, 0, 8 * steps, DataConfig(url, shuffle="local", shuffle_episodes=POOL)),
        (LATER, _LATER_STEP, 8 * steps, DataConfig(url, shuffle="local", shuffle_episodes=POOL)),
    ):
        config.history, config.chunk = HISTORY, CHUNK
        config.memory_megabytes = max(options.little_episodes // (10 * _EPISODES_OF_A_MEGABYTE), 1)
        trainer = TrainerConfig(
            global_batch=options.little_sequences, sequence_length=options.sequence_length
        )
        with TokenStream(config, trainer, seed=0) as stream:
            first = begin + steps
            _read(stream, begin, steps)  # the memory is full then
            timed(way, lambda stream=stream, first=first, count=count: _read(stream, first, count))


def _fill(url: str, cache: Path) -> None:
    """Put every episode into the cache."""
    index = DatasetIndex.load(url, cache=EpisodeCache(cache, 10**12))
    for begin in range(0, len(index.episodes), 64):
        for episode in read_episodes(index, index.episodes[begin : begin + 64]):
            if isinstance(episode, Exception):
                raise episode


def _read(stream: TokenStream, first: int, count: int) -> int:
    """Read the batches of some steps; returns their windows."""
    batches = (batch for step in range(first, first + count) for batch in stream.micro_batches(step, 0, 1))
    return sum(int(batch.segments[:, ::64].max(axis=1).sum()) for batch in batches)
