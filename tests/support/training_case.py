"""A small data set, and the settings of a training on it (for the trainer's tests)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from data.config import DataConfig
from data.contracts import DEFAULT_EMBODIMENT, Embodiment, Episode
from data.errors import InputError
from data.prepare.statistics import summarise
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, ImageFormat, StateRanges
from data.storage.shards import ShardWriter
from data.storage.store import open_store
from data.tokens.action import ActionRanges
from data.tokens.image import ImageTokenizer
from pretrain import main, trainer
from pretrain.checks import check_training
from pretrain.config import (
    CheckpointingConfig,
    LossConfig,
    OptimConfig,
    ParallelConfig,
    RunConfig,
    TelemetryConfig,
    TrainerConfig,
    TrainingConfig,
    ZeroStage,
)
from pretrain.hooks import StepHook
from pretrain.model.config import ModelConfig
from pretrain.run_folder import RunFolder
from pretrain.telemetry.sinks import read_metrics
from tests.support.ranks import run_ranks

LENGTHS = (12, 9, 10)


def write_dataset(
    folder: Path, seed: int = 0, robot: Embodiment = DEFAULT_EMBODIMENT, states: bool = False
) -> str:
    """Three episodes of frames with 2 x 2 codes; of a robot that is not LIBERO's with ranges of its own."""
    random = np.random.default_rng(seed)
    own = None if robot == DEFAULT_EMBODIMENT else (-1.0 - seed, 1.0 + seed)
    writer = ShardWriter(open_store(str(folder)), limit=100_000)
    episodes = [
        Episode(
            key=f"demos/demo_{number}",
            suite="test",
            task="lift",
            instruction="lift the cube",
            codes={"agent": random.integers(0, 512, (length, 2, 2), dtype=np.uint16)},
            actions=random.uniform(-1, 1, (length, robot.action_dim)) * robot.present,
            states=random.uniform(-1, 1, (length, robot.state_dim)).astype(np.float32)
            if states
            else np.zeros((length, robot.state_dim), np.float32),
        )
        for number, length in enumerate(LENGTHS)
    ]
    for episode in episodes:
        writer.add(episode)
    entries = tuple(EpisodeEntry.of(e, at, "train") for e, at in zip(episodes, writer.close(), strict=True))
    statistics = {name: summarise([getattr(e, name) for e in episodes]) for name in ("actions", "states")}
    DatasetIndex(
        image=ImageFormat(32, 2, 2, 512, ImageTokenizer.load().sha256),
        cameras=("agent",),
        action_ranges=ActionRanges()
        if own is None
        else ActionRanges((own[0],) * robot.action_dim, (own[1],) * robot.action_dim),
        statistics=statistics,
        episodes=EpisodeTable.of(entries),
        embodiment=robot,
        state_ranges=None
        if own is None
        else StateRanges((own[0],) * robot.state_dim, (own[1],) * robot.state_dim),
    ).save(str(folder))
    return str(folder)


def settings(tmp_path: Path, url: str, layout: tuple[int, int, int] = (1, 1, 1)) -> TrainingConfig:
    tensor, data, stage = layout
    return TrainingConfig(
        run=RunConfig(name="run", dir=str(tmp_path)),
        trainer=TrainerConfig(steps=6, global_batch=4, sequence_length=128, precision="fp32"),
        parallel=ParallelConfig(tensor=tensor, data=data, zero_stage=cast(ZeroStage, stage)),
        data=DataConfig(url=url, history=1, chunk=3),
        model=ModelConfig(
            vocabulary_size=16_896,
            hidden_size=32,
            ffn_size=48,
            layers=2,
            heads=4,
            max_positions=128,
            dropout=0.0,
        ),
        loss=LossConfig(image_weight=0.5),
        optim=OptimConfig(lr=0.01, schedule="cosine", warmup_steps=2, gradient_clipping=1.0),
        checkpointing=CheckpointingConfig(every=2),
        telemetry=TelemetryConfig(wandb="offline"),
    )


class BeforeStep(StepHook):
    """Calls a function before each step.

    Args:
        act: Gets the number of steps done.
    """

    def __init__(self, act: Callable[[int], None]) -> None:
        self._act = act

    def before_step(self, step: int) -> None:
        self._act(step - 1)


def try_train(config: TrainingConfig, hooks: Sequence[StepHook] = ()) -> str:
    """Check the settings and train on this rank; return the message of the InputError, or nothing."""
    try:
        check_training(config)
        trainer.train(config, hooks=hooks)
    except InputError as error:
        return str(error)
    return ""


def train(config: TrainingConfig) -> RunFolder:
    """Train on as many ranks as the layout needs."""
    ranks = config.parallel.tensor * config.parallel.data
    assert run_ranks(try_train, ranks, config) == [""] * ranks
    return RunFolder.of(config.run)


def measured(folder: RunFolder) -> list[dict[str, Any]]:
    """The lines of metrics of the steps."""
    return [record for record in read_metrics(folder.metrics) if "event" not in record]


def overrides(config: TrainingConfig) -> list[str]:
    """The settings as arguments of a command line: those that differ from the defaults."""
    defaults = dataclasses.asdict(TrainingConfig())
    return [
        f"{section}.{key}={'null' if value is None else value}"
        for section, values in dataclasses.asdict(config).items()
        for key, value in values.items()
        if not isinstance(value, dict | tuple) and value != defaults[section][key]
    ]


def run_main(arguments: list[str]) -> int:
    """Run the entry point of torchrun on this rank; return its exit code."""
    os.environ["WANDB_MODE"] = "offline"
    return main.main(arguments)
