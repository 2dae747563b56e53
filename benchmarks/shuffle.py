"""How random the order of the windows is: ours, full and local, beside webdataset's and MosaicML's.

    full         `data.shuffle=full`: every window may come next
    local        `data.shuffle=local`: a place of the step draws from 32 episodes at a time
    webdataset   the library: shuffled shards, divided over 8 readers, each with a buffer of 1,000 windows
    py1e         MosaicML streaming's default order, simulated from its documentation: shuffled shards of
                 one canonical node, each sample moved at random within a range of `shuffle_block_size`

One epoch of the action windows of the same simulated episodes (80 to 300 steps, 50 in a shard), in steps of
the same number of windows; ids only, nothing is read. The fewer episodes an order needs at a time, the more
its windows are alike: `open` is what the randomness costs. Columns:

    same       other windows of its episode in the step of a window
    next       share of a step's windows whose episode also occurs in the next step
    within     distance between neighbouring windows of an episode, as a share of the epoch (random: 1/3)
    between    the same between windows of neighbouring episodes
    open       share of the episodes between their first window and their last, mean over the epoch
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from webdataset import filters

from benchmarks.report import Column, Report, arguments
from data.config import MixtureConfig
from data.stream.order.layout import DatasetWindows
from data.stream.order.plan import DataPlan
from data.stream.samples import SampleForm
from data.stream.windows.episode_line import EpisodeLine
from data.stream.windows.window_table import WindowTable
from data.tokens.image_block import image_block_length

FULL, LOCAL, WEBDATASET, PY1E = "full", "local", "webdataset", "py1e"
_FORM = SampleForm(image_block_length(16, 16))
_SHARD, _SEQUENCES, _LENGTH, _POOL = 50, 8, 8192, 32
_BUFFER, _NODES, _BLOCK = 1000, 1, 1 << 18
_COLUMNS = (
    Column("way", "order"),
    Column("windows", "windows"),
    Column("step", "windows a step"),
    Column("same", "same episode in the step", digits=2),
    Column("next", "shared with the next step", digits=3),
    Column("within", "distance within an episode", "of the epoch", digits=3),
    Column("between", "distance of neighbours", "of the epoch", digits=3),
    Column("open", "episodes open", "of all", digits=3),
)

_Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows in the order of an epoch, int64 [steps, windows of a step] each: episode and time step."""

    episodes: _Ints
    times: _Ints


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report; returns the exit status."""
    options = parse(argv)
    report = Report("shuffle", "How random the order of the windows is", _COLUMNS, "cpu")
    lengths = np.random.default_rng(0).integers(80, 301, options.episodes).astype(np.int32)
    measured = {
        FULL: measure(planned(lengths, None), options.episodes),
        LOCAL: measure(planned(lengths, options.pool), options.episodes),
    }
    step = int(measured[FULL]["step"])
    measured[WEBDATASET] = measure(webdataset_epoch(lengths, step), options.episodes)
    measured[PY1E] = measure(py1e_epoch(lengths, step, options.block), options.episodes)
    for way, values in measured.items():
        report.add(way=way, **values)
    local, full, peer = measured[LOCAL], measured[FULL], measured[WEBDATASET]
    for text, met, value in (
        (
            "local: fewer windows of one episode in a step than webdataset",
            local["same"] < peer["same"],
            "same",
        ),
        (
            "local: windows of an episode farther apart than webdataset",
            local["within"] > peer["within"],
            "within",
        ),
        ("local: steps share fewer episodes than webdataset's", local["next"] < peer["next"], "next"),
    ):
        report.target(text, met, local[value])
    met = abs(full["within"] - 1 / 3) < 0.02
    report.target("full: windows of an episode as far apart as at random, 0.33", met, full["within"])
    report.finish(options.out)
    return 0


def parse(argv: Sequence[str] | None) -> Namespace:
    """Options, with sizes for the machine."""
    parser = arguments("shuffle", __doc__)
    parser.add_argument("--episodes", type=int, help="default: 20,000, 3.7 million windows")
    parser.add_argument("--pool", type=int, default=_POOL, help="data.shuffle_episodes; default: %(default)s")
    parser.add_argument(
        "--block", type=int, default=_BLOCK, help="py1e's shuffle_block_size; default: %(default)s"
    )
    options = parser.parse_args(argv)
    options.episodes = options.episodes or (4000 if options.smoke else 20_000)
    return options


def planned(lengths: NDArray[np.int32], pool: int | None) -> Windows:
    """An epoch of our order, whole steps."""
    numbered, texts = WindowTable if pool is None else EpisodeLine, np.full(len(lengths), 12, np.int32)
    actions = numbered(lengths, _FORM.chunk - 1, _FORM.history, texts, _FORM.action_length)
    worlds = numbered(lengths, _FORM.predicted, 1, texts, lambda words, _: _FORM.world_length(words))
    datasets = [DatasetWindows("simulated", (actions, worlds))]
    plan = DataPlan(datasets, MixtureConfig(1, 0), _SEQUENCES, _LENGTH, 0, "simulated", pool_episodes=pool)
    steps = [plan.step(step) for step in range(actions.count // int(plan.layout.counts.sum()))]
    return Windows(np.stack([each.episodes for each in steps]), np.stack([each.times for each in steps]))


def webdataset_epoch(lengths: NDArray[np.int32], step: int) -> Windows:
    """An epoch of webdataset's filters: each of 8 readers has its shards, shuffled, and its buffer."""
    shards = np.array_split(np.arange(len(lengths)), -(-len(lengths) // _SHARD))
    names = list(filters.shuffle(len(shards), initial=len(shards), seed=0)(iter(range(len(shards)))))  # pyright: ignore

    def windows(reader: int) -> Iterator[int]:
        for shard in names[reader::_SEQUENCES]:
            for episode in shards[shard].tolist():
                first = episode << 32
                yield from range(first, first + int(lengths[episode]) - _FORM.chunk + 1)

    shuffled: Any = filters.shuffle
    readers = [
        np.fromiter(shuffled(_BUFFER, initial=_BUFFER, seed=reader + 1)(windows(reader)), np.int64)
        for reader in range(_SEQUENCES)
    ]
    return _interleaved(readers, step)


def py1e_epoch(lengths: NDArray[np.int32], step: int, block: int) -> Windows:
    """An epoch of MosaicML's `py1e`."""
    random, counts = np.random.default_rng(0), lengths - _FORM.chunk + 1
    shards = np.array_split(np.arange(len(lengths)), -(-len(lengths) // _SHARD))
    shards = [shards[number] for number in random.permutation(len(shards))]
    sizes = [int(counts[shard].sum()) for shard in shards]
    windows = np.concatenate([_windows_of(shard, counts) for shard in shards])
    reach = np.repeat(np.maximum(block - np.array(sizes), 0) / 2, sizes)  # to either side of the shard
    edges = np.linspace(0, len(windows), _NODES + 1).astype(np.int64)
    nodes: list[_Ints] = []
    for first, last in pairwise(edges.tolist()):
        at = np.arange(first, last, dtype=np.float64)
        low, high = np.maximum(at - reach[first:last], first), np.minimum(at + reach[first:last], last)
        nodes.append(windows[first:last][np.argsort(random.uniform(low, high))])
    return _interleaved(nodes, step)


def measure(windows: Windows, episodes: int) -> dict[str, float]:
    """The columns of a row."""
    steps, size = windows.episodes.shape
    at = np.repeat(np.arange(steps), size)
    owners, times = windows.episodes.reshape(-1), windows.times.reshape(-1)
    there, counts = np.unique(at * episodes + owners, return_counts=True)
    following = np.isin(at * episodes + owners + episodes, there, assume_unique=False)[at < steps - 1]
    order = np.lexsort((times, owners))
    owners, at, times = owners[order], at[order], times[order]
    neighbours = (np.diff(owners) == 0) & (np.diff(times) == 1)
    random = np.random.default_rng(0)
    begins = np.searchsorted(owners, np.arange(episodes))
    held = np.diff(np.append(begins, len(owners)))
    chosen = at[np.minimum(begins + (random.random(episodes) * held).astype(np.int64), len(at) - 1)]
    both = (held[1:] > 0) & (held[:-1] > 0)
    first, last = np.full(episodes, steps), np.full(episodes, -1)
    np.minimum.at(first, owners, at)
    np.maximum.at(last, owners, at)
    return {
        "windows": len(owners),
        "step": size,
        "same": float((counts * (counts - 1)).sum() / len(owners)),
        "next": float(following.mean()),
        "within": float(np.abs(np.diff(at))[neighbours].mean() / steps),
        "between": float(np.abs(np.diff(chosen))[both].mean() / steps),
        "open": float(np.maximum(last - first + 1, 0).sum() / steps / episodes),
    }


def _windows_of(shard: _Ints, counts: NDArray[np.int32]) -> _Ints:
    """Windows of a shard: episode in the upper 32 bits, time step in the lower ones."""
    sizes = counts[shard]
    starts = np.repeat((shard << 32) - np.cumsum(sizes) + sizes, sizes)
    return starts + np.arange(len(starts))


def _interleaved(readers: Sequence[_Ints], step: int) -> Windows:
    """Whole steps, of which each reader gives its share, as long as all have windows."""
    each = [
        step * (number + 1) // len(readers) - step * number // len(readers) for number in range(len(readers))
    ]
    steps = min(len(windows) // share for windows, share in zip(readers, each, strict=True))
    parts = [
        windows[: steps * share].reshape(steps, share) for windows, share in zip(readers, each, strict=True)
    ]
    joined = np.concatenate(parts, axis=1)
    return Windows(joined >> 32, joined & 0xFFFFFFFF)


if __name__ == "__main__":
    sys.exit(main())
