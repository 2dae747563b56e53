"""From the plan to token batches: what one data-parallel rank trains on in one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.contracts import PackedBatch
from data.errors import InputError
from data.storage.index import DatasetIndex, EpisodeEntry
from data.stream.episodes import EpisodeCache, split_entries
from data.stream.packing import pack, sample_layout
from data.stream.plan import Kind, Plan
from data.stream.sequence import (
    WORLD_TEXT,
    Sample,
    action_sample,
    action_sample_length,
    action_text,
    world_sample,
    world_sample_length,
)
from data.tokens.image_block import image_block, image_block_length
from data.tokens.text import TextTokenizer


class BatchShape(Protocol):
    """The settings of a trainer that shape its batches (`pretrain.config.TrainerConfig` has them)."""

    @property
    def global_batch(self) -> int:
        """Sequences in one step over all ranks."""
        ...

    @property
    def micro_batch(self) -> int | None:
        """Sequences a rank processes at a time; None: its whole share."""
        ...

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence."""
        ...


@dataclass(frozen=True, slots=True)
class PromptTexts:
    """Token ids of the prompts' words, each distinct instruction encoded once, int32.

    Attributes:
        actions: Instruction -> ids of `action_text(instruction)`.
        world: Ids of `WORLD_TEXT`.
        vocabulary_size: One more than the largest id that a sample can hold.
    """

    actions: Mapping[str, NDArray[np.int32]]
    world: NDArray[np.int32]
    vocabulary_size: int

    @classmethod
    def encode(cls, tokenizer: TextTokenizer, entries: Sequence[EpisodeEntry]) -> Self:
        """Encode the prompts of all `entries`."""
        return cls(
            actions={
                instruction: np.array(tokenizer.encode(action_text(instruction)), np.int32)
                for instruction in {entry.instruction for entry in entries}
            },
            world=np.array(tokenizer.encode(WORLD_TEXT), np.int32),
            vocabulary_size=tokenizer.size,
        )


class TokenStream:
    """Packed batches of one split; the same for the same step, whatever was asked before.

    One thread prepares the next step while the current one trains; use as a context manager, or call
    `close`, to end it.

    Args:
        config: Where the data set is and how samples are cut.
        trainer: Shape of the batches.
        seed: Of the order.
        split: One of `data.storage.index.SPLITS`.

    Raises:
        InputError: No data set there, a setting that it cannot serve, or sequences too short for it.
    """

    def __init__(self, config: DataConfig, trainer: BatchShape, seed: int, split: str = "train") -> None:
        _check_settings(config, trainer)
        self.index = DatasetIndex.load(config.url)
        self._episodes = EpisodeCache(self.index, split, config.camera)
        tokenizer = TextTokenizer.load(config.text_tokenizer)
        self._texts = PromptTexts.encode(tokenizer, self._episodes.entries)
        self.plan = _make_plan(self.index, self._episodes.entries, self._texts, config, trainer, seed)
        self._config = config
        self._trainer = trainer
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-stream")
        self._ahead: dict[tuple[int, int, int], Future[list[PackedBatch]]] = {}

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest possible sample: what the model's `max_positions` must reach."""
        return max(_longest_samples(self.index, self._texts, self._config))

    @property
    def vocabulary_size(self) -> int:
        """One more than the largest possible token id: what the model's vocabulary must hold."""
        return self._texts.vocabulary_size

    def micro_batches(self, step: int, data_rank: int, data_size: int) -> list[PackedBatch]:
        """What data-parallel rank `data_rank` of `data_size` trains on in optimiser step `step` (from 0).

        Joined over micro-batches and then ranks, the arrays are the same for any number of ranks.
        Tensor-parallel peers ask for the same and get the same.

        Returns:
            Micro-batches of `micro_batch` sequences (the last has what is left).

        Raises:
            InputError: The global batch does not divide by the ranks, or a shard is missing or broken.
        """
        wanted = (step, data_rank, data_size)
        following = (step + 1, data_rank, data_size)
        batches = self._ahead.pop(wanted, None) or self._worker.submit(self._assemble, *wanted)
        for other in self._ahead.values():  # of a step that is not the next after all
            other.cancel()
        self._ahead = {following: self._worker.submit(self._assemble, *following)}
        return batches.result()

    def close(self) -> None:
        """End the thread; a batch in preparation is finished and dropped."""
        self._worker.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assemble(self, step: int, data_rank: int, data_size: int) -> list[PackedBatch]:
        first, last = self.plan.share(data_rank, data_size)
        planned = self.plan.step(step, first, last)
        windows = zip(
            planned.sequences.tolist(),
            planned.kinds.tolist(),
            planned.episodes.tolist(),
            planned.times.tolist(),
            strict=True,
        )
        rows = [
            [self._sample(kind, episode, time) for _, kind, episode, time in row]
            for _, row in groupby(windows, key=lambda window: window[0])
        ]
        size = self._trainer.micro_batch or len(rows)
        length = self._trainer.sequence_length
        return [pack(rows[i : i + size], length) for i in range(0, len(rows), size)]

    def _sample(self, kind: int, number: int, time: int) -> Sample:
        episode = self._episodes[number]
        pixels = self.index.image.pixels
        if kind == Kind.WORLD:
            now, following = image_block(episode.codes[time : time + 2], pixels)
            return world_sample(self._texts.world, now, episode.action_ids[time], following)
        frames = episode.codes[max(0, time - self._config.history + 1) : time + 1]
        actions = episode.action_ids[time : time + self._config.chunk]
        text = self._texts.actions[self._episodes.entries[number].instruction]
        return action_sample(text, list(image_block(frames, pixels)), actions)


def plan_ids(
    config: DataConfig, trainer: BatchShape, seed: int, step: int, ranks: int, split: str = "train"
) -> dict[str, list[list[int]]]:
    """Which windows each data-parallel rank gets in a step: `{"ranks": [[ids of rank 0], ...]}`.

    Joined over the ranks the ids are the same for any number of them. Ids are unique over both kinds:
    action windows first, then world windows, each episode by episode (see `plan.PlannedWindows`).

    Raises:
        InputError: As `TokenStream`, or the global batch does not divide by `ranks`.
    """
    _check_settings(config, trainer)
    index = DatasetIndex.load(config.url)
    entries = split_entries(index, split)
    texts = PromptTexts.encode(TextTokenizer.load(config.text_tokenizer), entries)
    plan = _make_plan(index, entries, texts, config, trainer, seed)
    shares = [plan.share(rank, ranks) for rank in range(max(ranks, 1))]
    return {"ranks": [plan.step(step, *share).ids.tolist() for share in shares]}


def _make_plan(
    index: DatasetIndex,
    entries: Sequence[EpisodeEntry],
    texts: PromptTexts,
    config: DataConfig,
    trainer: BatchShape,
    seed: int,
) -> Plan:
    action, world = _longest_samples(index, texts, config)
    layout = sample_layout(config.mixture, action, world, trainer.global_batch, trainer.sequence_length)
    lengths = np.array([entry.length for entry in entries], np.int64)
    return Plan(lengths, config.chunk, layout, seed, index.fingerprint)


def _longest_samples(index: DatasetIndex, texts: PromptTexts, config: DataConfig) -> tuple[int, int]:
    """Tokens of the longest action and the longest world sample."""
    image = image_block_length(index.image.rows, index.image.columns)
    text = max(len(ids) for ids in texts.actions.values())
    return (
        action_sample_length(text, image, config.history, config.chunk),
        world_sample_length(len(texts.world), image),
    )


def _check_settings(config: DataConfig, trainer: BatchShape) -> None:
    settings = {
        "data.history": config.history,
        "data.chunk": config.chunk,
        "trainer.global_batch": trainer.global_batch,
        "trainer.micro_batch": trainer.micro_batch,
        "trainer.sequence_length": trainer.sequence_length,
    }
    for name, value in settings.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
