"""A small data set of shards and its index (for the tests of storage)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.contracts import DEFAULT_EMBODIMENT, Compression, Embodiment, Episode
from data.prepare.statistics import summarise
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, ImageFormat
from data.storage.shards import ShardWriter
from data.storage.store import open_store
from data.tokens.action import ActionRanges


def episode(
    number: int, steps: int = 5, robot: Embodiment = DEFAULT_EMBODIMENT, variants: int = 0
) -> Episode:
    random = np.random.default_rng(number)

    def codes() -> dict[str, NDArray[np.uint16]]:
        cameras = ("wrist", "agent")
        return {camera: random.integers(0, 512, (steps, 8, 8), dtype=np.uint16) for camera in cameras}

    return Episode(
        key=f"lift/demo_{number}",
        suite="robosuite_lift",
        task="lift",
        instruction="lift the cube",
        codes=codes(),
        actions=random.normal(size=(steps, robot.action_dim)),
        states=random.normal(size=(steps, robot.state_dim)).astype(np.float32),
        variants=tuple(codes() for _ in range(variants)),
    )


def equal(a: Episode, b: Episode) -> bool:
    same = (a.key, a.suite, a.task, a.instruction) == (b.key, b.suite, b.task, b.instruction)
    arrays = [(a.actions, b.actions), (a.states, b.states)]
    same = same and len(a.variants) == len(b.variants)
    for of_a, of_b in zip((a.codes, *a.variants), (b.codes, *b.variants), strict=False):
        same = same and set(of_a) == set(of_b)
        arrays += [(of_a[camera], of_b[camera]) for camera in of_a]
    return same and all(np.array_equal(x, y) for x, y in arrays)


def write_dataset(
    folder: Path,
    count: int = 3,
    limit: int = 1 << 20,
    compression: Compression = "none",
    episodes: Sequence[Episode] = (),
    codebook_size: int = 512,
    robot: Embodiment = DEFAULT_EMBODIMENT,
    variants: int = 0,
) -> DatasetIndex:
    """Write these episodes, without any `count` made-up ones; of several the first is held out."""
    episodes = episodes or [episode(i, 4 + i, robot, variants) for i in range(count)]
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
        action_ranges=ActionRanges((-2.0,) * robot.action_dim, (2.0,) * robot.action_dim)
        if robot != DEFAULT_EMBODIMENT
        else ActionRanges(),
        statistics={
            "actions": summarise([item.actions for item in episodes]),
            "states": summarise([item.states for item in episodes]),
        },
        episodes=EpisodeTable.of(entries),
        compression=compression,
        embodiment=robot,
        variants=variants,
    )
    index.save(str(folder))
    return DatasetIndex.load(str(folder))
