"""The parts of a token stream from the settings: data sets, prompts, sizes of the samples, and the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from data.config import DataConfig
from data.errors import InputError
from data.storage.episode_entry import ALL_SPLITS, TRAINING_SPLIT
from data.stream.datasets import StreamDataset, combined_fingerprint, image_format, open_datasets
from data.stream.order.layout import DatasetWindows
from data.stream.order.plan import DataPlan, Order
from data.stream.order_choice import choose_order
from data.stream.prompts import WORLD, PromptTexts
from data.stream.samples import SampleForm
from data.stream.windows.episode_line import EpisodeLine
from data.stream.windows.window_table import WindowTable
from data.tokens.image_block import image_block_length
from data.tokens.state import check_state_ranges
from data.tokens.text import TextTokenizer


class BatchShape(Protocol):
    """The settings of a trainer that shape its batches (`pretrain.config.TrainerConfig` has them)."""

    @property
    def global_batch(self) -> int:
        """Sequences in one step over all ranks."""
        ...

    @property
    def micro_batch(self) -> int | None:
        """Sequences that a rank processes at a time; None: its whole share."""
        ...

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence."""
        ...


@dataclass(frozen=True)
class StreamSetup:
    """What a token stream is built from; no episode has been read.

    Attributes:
        plan: The order.
        datasets: The data sets.
        texts: Words of the prompts.
        forms: Sizes of the samples of each data set.
        config: The settings, without variants of frames where held-out episodes are read.
    """

    plan: DataPlan
    datasets: tuple[StreamDataset, ...]
    texts: PromptTexts
    forms: tuple[SampleForm, ...]
    config: DataConfig


def open_setup(config: DataConfig, trainer: BatchShape, seed: int, split: str | None = None) -> StreamSetup:
    """Open the data sets of the settings and plan the order of their samples (None: of `data.split`).

    Held-out episodes are always shown as they were recorded.

    Raises:
        InputError: A data set is missing, a setting is invalid, or the sequences are too short.
    """
    _check_settings(config, trainer)
    if (split or config.split) not in (TRAINING_SPLIT, ALL_SPLITS):
        config = replace(config, variants=0)
    datasets = open_datasets(config, split)
    texts = PromptTexts.encode(TextTokenizer.load(config.text_tokenizer), datasets)
    forms, order = sample_forms(datasets, config), planned_order(config, datasets)
    plan = DataPlan(
        dataset_windows(datasets, texts, forms, order),
        config.mixture,
        trainer.global_batch,
        trainer.sequence_length,
        seed,
        combined_fingerprint(datasets),
        config.variants,
        config.shuffle_episodes if order == "local" else None,
    )
    return StreamSetup(plan, datasets, texts, forms, config)


def make_plan(config: DataConfig, trainer: BatchShape, seed: int, split: str | None = None) -> DataPlan:
    """The order of the samples, without reading an episode.

    Raises:
        InputError: As `open_setup`.
    """
    return open_setup(config, trainer, seed, split).plan


def planned_order(config: DataConfig, datasets: Sequence[StreamDataset]) -> Order:
    """The order of the windows of data sets that the settings open."""
    return choose_order(config, datasets, sample_forms(datasets, config))


def sample_forms(datasets: Sequence[StreamDataset], config: DataConfig) -> tuple[SampleForm, ...]:
    """Sizes of the samples of each data set."""
    image = image_format(datasets)
    return tuple(
        SampleForm(
            image=image_block_length(image.rows, image.columns),
            views=len(config.cameras),
            history=config.history,
            chunk=dataset.source.chunk,
            predicted=config.predicted_frames,
            action_dim=dataset.source.embodiment.action_dim,
            state_dim=dataset.source.state_dim,
        )
        for dataset in datasets
    )


def dataset_windows(
    datasets: Sequence[StreamDataset], texts: PromptTexts, forms: Sequence[SampleForm], order: Order
) -> list[DatasetWindows]:
    """The windows of each data set, numbered for the order."""
    numbered = WindowTable if order == "full" else EpisodeLine
    lengths = texts.lengths.astype(np.uint16) if texts.lengths.max() < 1 << 16 else texts.lengths
    return [
        DatasetWindows(
            name=dataset.name,
            weight=dataset.weight,
            tables=(
                numbered(
                    dataset.steps, form.chunk - 1, form.history, lengths[of_episodes], form.action_length
                ),
                numbered(
                    dataset.steps,
                    form.predicted,
                    1,
                    np.broadcast_to(texts.lengths[WORLD], len(dataset.steps)),
                    lambda words, frames, form=form: form.world_length(words),
                ),
            ),
        )
        for dataset, of_episodes, form in zip(datasets, texts.of_episodes, forms, strict=True)
    ]


def _check_settings(config: DataConfig, trainer: BatchShape) -> None:
    settings = {
        "data.history": config.history,
        "data.chunk": config.chunk,
        "data.predicted_frames": config.predicted_frames,
        "data.shuffle_episodes": config.shuffle_episodes,
        "data.memory_megabytes": config.memory_megabytes,
        "data.readers": config.readers,
        "trainer.global_batch": trainer.global_batch,
        "trainer.micro_batch": trainer.micro_batch,
        "trainer.sequence_length": trainer.sequence_length,
    }
    for name, value in settings.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    if config.history > trainer.sequence_length:  # a frame has several tokens
        raise InputError(
            f"data.history={config.history}: so many time steps do not fit trainer.sequence_length="
            f"{trainer.sequence_length} tokens; make data.history smaller"
        )
    states = config.state_ranges
    check_state_ranges(states.minimum, states.maximum, len(states.minimum))
    for name, value in (
        ("variants", config.variants),
        ("prefetch", config.prefetch),
        ("retry_seconds", config.retry_seconds),
        ("skip_bad_episodes", config.skip_bad_episodes),
    ):
        if not value >= 0:
            raise InputError(f"data.{name} is {value}, expected at least 0")
