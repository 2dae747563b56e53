"""Data sets of several robots, and the settings of a stream of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.config import DataConfig, MixtureSource
from data.contracts import DEFAULT_EMBODIMENT, Embodiment, PackedBatch
from data.storage.index import DatasetIndex, StateRanges
from data.tokens.action import ActionRanges
from pretrain.config import TrainerConfig
from tests.support.reference_batches import Source
from tests.support.shards_case import episode, write_dataset

FIELDS = (
    "tokens", "labels", "positions", "segments", "blocks",
    "action_starts", "action_targets", "action_present", "sources",
)  # fmt: skip
ALOHA = Embodiment("aloha", tuple(f"joint_{i}" for i in range(14)), tuple(f"q_{i}" for i in range(14)))
DROID = Embodiment("droid", tuple(f"v_{i}" for i in range(8)), ())
JACO = Embodiment("jaco", ("x", "y", "turn", "grip"), ("a", "b", "c"), missing=("turn",))
ROBOTS = (DEFAULT_EMBODIMENT, ALOHA, DROID, JACO)
CHUNKS = (None, 3, 2, 1)  # None: that of the settings, 2
EPISODES, VARIANTS = 5, 2
TRAINER = TrainerConfig(global_batch=4, sequence_length=2048)


def write_sources(folder: Path) -> list[Source]:
    """One data set of each robot; its first episode is held out."""
    result: list[Source] = []
    for number, robot in enumerate(ROBOTS):
        of = [episode(10 * number + i, 4 + i, robot, VARIANTS) for i in range(EPISODES)]
        at = str(folder / robot.name)
        index = write_dataset(folder / robot.name, episodes=of, robot=robot, variants=VARIANTS)
        ranges = ActionRanges((-1.0 - number,) * robot.action_dim, (2.0,) * robot.action_dim)
        states = None if number == 0 else StateRanges((-2.0,) * robot.state_dim, (2.0,) * robot.state_dim)
        index = replace(index, action_ranges=ranges, state_ranges=states if robot.state_dim else None)
        index.save(at)
        result.append(Source(DatasetIndex.load(at), of[1:], CHUNKS[number] or 2))
    return result


def configured(sources: Sequence[Source], state: bool = False, variants: int = 0) -> DataConfig:
    return DataConfig(
        sources=[
            MixtureSource(source.index.url, weight=1.0 + number / 4, chunk=CHUNKS[ROBOTS.index(robot)])
            for number, source in enumerate(sources)
            for robot in [source.index.embodiment]
        ],
        chunk=2, predicted_frames=2, cameras=["wrist", "agent"], state=state, variants=variants,
    )  # fmt: skip


def check_equal(found: PackedBatch, expected: PackedBatch) -> None:
    for field in FIELDS:
        assert np.array_equal(getattr(found, field), getattr(expected, field)), field
