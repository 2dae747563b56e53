"""A small data set of shards and its index (for the tests of storage)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.contracts import Compression, Episode
from data.prepare.statistics import summarise
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, ImageFormat
from data.storage.shards import ShardWriter
from data.storage.store import open_store
from data.tokens.action import ActionRanges


def episode(number: int, steps: int = 5) -> Episode:
    random = np.random.default_rng(number)
    return Episode(
        key=f"lift/demo_{number}",
        suite="robosuite_lift",
        task="lift",
        instruction="lift the cube",
        codes={
            camera: random.integers(0, 512, (steps, 8, 8), dtype=np.uint16) for camera in ("wrist", "agent")
        },
        actions=random.normal(size=(steps, 7)),
        states=random.normal(size=(steps, 8)).astype(np.float32),
    )


def equal(a: Episode, b: Episode) -> bool:
    same = (a.key, a.suite, a.task, a.instruction) == (b.key, b.suite, b.task, b.instruction)
    arrays = [(a.actions, b.actions), (a.states, b.states), *((a.codes[c], b.codes[c]) for c in a.codes)]
    return same and set(a.codes) == set(b.codes) and all(np.array_equal(x, y) for x, y in arrays)


def write_dataset(
    folder: Path,
    count: int = 3,
    limit: int = 1 << 20,
    compression: Compression = "none",
    episodes: Sequence[Episode] = (),
    codebook_size: int = 512,
) -> DatasetIndex:
    """Write these episodes, without any `count` made-up ones; of several the first is held out."""
    episodes = episodes or [episode(i, steps=4 + i) for i in range(count)]
    writer = ShardWriter(open_store(str(folder)), limit, compression=compression)
    for item in episodes:
        writer.add(item)
    entries = [
        EpisodeEntry(
            **dataclasses.asdict(location),
            key=item.key,
            length=item.length,
            suite=item.suite,
            task=item.task,
            instruction=item.instruction,
            split="train" if i or len(episodes) == 1 else "val_ind",
        )
        for i, (item, location) in enumerate(zip(episodes, writer.close(), strict=True))
    ]
    index = DatasetIndex(
        image=ImageFormat(
            pixels=64, rows=8, columns=8, codebook_size=codebook_size, tokenizer_sha256="0" * 64
        ),
        cameras=("agent", "wrist"),
        action_ranges=ActionRanges(),
        statistics={
            "actions": summarise([item.actions for item in episodes]),
            "states": summarise([item.states for item in episodes]),
        },
        episodes=EpisodeTable.of(entries),
        compression=compression,
    )
    index.save(str(folder))
    return DatasetIndex.load(str(folder))
