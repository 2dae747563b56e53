"""From the plan to token batches: what one data-parallel rank trains on in one step."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Protocol, Self

import numpy as np

from data.config import DataConfig
from data.contracts import PackedBatch
from data.errors import InputError
from data.stream.batch_assembler import Assembler
from data.stream.datasets import Source, combined_fingerprint, image_format, open_sources
from data.stream.layout import SourceWindows
from data.stream.episode_memory import EpisodeMemory
from data.stream.placeholder_batches import BlankEpisodes
from data.stream.plan import Plan
from data.stream.prompts import WORLD, PromptTexts
from data.stream.samples import SampleForm
from data.stream.window_table import WindowTable
from data.tokens.image_block import image_block_length
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


class TokenStream:
    """Packed batches of one split; the same for the same step, whatever was asked before.

    One thread prepares the next steps while the current one trains; use as a context manager, or call
    `close`, to end it.

    Args:
        config: Where the data sets are and how samples are cut.
        trainer: Shape of the batches.
        seed: Of the order.
        split: One of `data.storage.index.SPLITS`.

    Attributes:
        plan: The order.
        fingerprint: Checksum of the data sets that are trained on together.
        image: How their frames became codes.
        place: Their URLs, for messages.
        action_ranges: Ranges over which the actions of the first data set became tokens.
        vocabulary_size: One more than the largest possible token id: what the model's vocabulary must hold.

    Raises:
        InputError: No data set there, a setting that it cannot serve, or sequences too short for it.
    """

    def __init__(self, config: DataConfig, trainer: BatchShape, seed: int, split: str = "train") -> None:
        self.plan, sources, texts, form = _open(config, trainer, seed, split)
        self.fingerprint, self.image = combined_fingerprint(sources), image_format(sources)
        self.action_ranges = sources[0].index.action_ranges
        self.place = ", ".join(source.index.url for source in sources)
        self.vocabulary_size = texts.vocabulary_size
        self._memory = EpisodeMemory(sources, form, config)
        self._assembler = Assembler(form, texts, self._memory, trainer.sequence_length)
        self._blank = lambda: Assembler(
            form, texts, BlankEpisodes(sources, form, config, self._memory.skipped), trainer.sequence_length
        )
        self._micro_batch, self._prefetch = trainer.micro_batch, config.prefetch
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-stream")
        self._ahead: dict[tuple[int, int, int], Future[list[PackedBatch]]] = {}

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest possible sample: what the model's `max_positions` must reach."""
        return self.plan.longest_sample

    @property
    def skipped_episodes(self) -> int:
        """Bad episodes that this rank has left out so far."""
        return len(self._memory.skipped)

    def epochs(self, step: int) -> dict[str, float]:
        """How often each data set's windows have been trained on before `step`, over all ranks.

        Returns:
            `{"<last part of the URL>/action": 1.25, "<last part of the URL>/world": 0.98, ...}`.
        """
        return self.plan.epochs(step)

    def micro_batches(self, step: int, data_rank: int, data_size: int) -> list[PackedBatch]:
        """What data-parallel rank `data_rank` of `data_size` trains on in optimiser step `step` (from 0).

        Joined over micro-batches and then ranks, the arrays are the same for any number of ranks.
        Tensor-parallel peers ask for the same and get the same.

        Returns:
            Micro-batches of `micro_batch` sequences (the last has what is left).

        Raises:
            InputError: The global batch does not divide by the ranks, or a shard is missing or broken.
        """
        self._prepare(step, data_rank, data_size)
        return self._ahead.pop((step, data_rank, data_size)).result()

    def comes(self, step: int, data_rank: int, data_size: int, seconds: float) -> bool:
        """Wait for a step's batches at most so long; whether `micro_batches` has them (or an error) now."""
        self._prepare(step, data_rank, data_size)
        return bool(wait([self._ahead[step, data_rank, data_size]], seconds).done)

    def stand_ins(self, step: int, data_rank: int, data_size: int) -> list[PackedBatch]:
        """Batches in the form of `micro_batches` for a step that will not count; nothing is read for them.

        Frames, actions and states are blank; all but the ids of tokens and labels is as planned.

        Raises:
            InputError: The global batch does not divide by the ranks.
        """
        return self._assemble(step, data_rank, data_size, self._blank())

    def _prepare(self, step: int, data_rank: int, data_size: int) -> None:
        wanted = [(step + ahead, data_rank, data_size) for ahead in range(self._prefetch + 1)]
        for other in self._ahead.keys() - set(wanted):  # of steps that do not come next after all
            self._ahead.pop(other).cancel()
        for one in wanted:
            if one not in self._ahead:
                self._ahead[one] = self._worker.submit(self._assemble, *one)

    def close(self) -> None:
        """End the threads; a batch in preparation is dropped, whatever it waits for."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._memory.close()
        self._worker.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assemble(
        self, step: int, data_rank: int, data_size: int, assembler: Assembler | None = None
    ) -> list[PackedBatch]:
        first, last = self.plan.share(data_rank, data_size)
        whole = (assembler or self._assembler).assemble(self.plan.step(step, first, last), first, last)
        size = self._micro_batch or last - first
        return [whole.rows(i, i + size) for i in range(0, last - first, size)]


def plan_ids(
    config: DataConfig, trainer: BatchShape, seed: int, step: int, ranks: int, split: str = "train"
) -> dict[str, list[list[int]]]:
    """Which windows each data-parallel rank gets in a step: `{"ranks": [[ids of rank 0], ...]}`.

    Joined over the ranks the ids are the same for any number of them; what they mean: `plan.Plan.ids`.

    Raises:
        InputError: As `TokenStream`, or the global batch does not divide by `ranks`.
    """
    return {"ranks": ids_of_ranks(make_plan(config, trainer, seed, split), step, ranks)}


def ids_of_ranks(plan: Plan, step: int, ranks: int) -> list[list[int]]:
    """The ids of each rank's windows in a step, see `plan.Plan.ids`.

    Raises:
        InputError: The global batch does not divide by `ranks`.
    """
    shares = [plan.share(rank, ranks) for rank in range(max(ranks, 1))]
    return [plan.ids(plan.step(step, *share)).tolist() for share in shares]


def make_plan(config: DataConfig, trainer: BatchShape, seed: int, split: str = "train") -> Plan:
    """The order alone, without reading an episode.

    Raises:
        InputError: As `TokenStream`.
    """
    return _open(config, trainer, seed, split)[0]


def source_windows(sources: Sequence[Source], texts: PromptTexts, form: SampleForm) -> list[SourceWindows]:
    """The windows of each data set."""
    lengths = texts.lengths.astype(np.uint16) if texts.lengths.max() < 1 << 16 else texts.lengths
    return [
        SourceWindows(
            name=source.name,
            weight=source.weight,
            tables=(
                WindowTable(
                    source.steps, form.chunk - 1, form.history, lengths[of_episodes], form.action_length
                ),
                WindowTable(
                    source.steps,
                    form.predicted,
                    1,
                    np.broadcast_to(texts.lengths[WORLD], len(source.steps)),
                    lambda words, frames: form.world_length(words),
                ),
            ),
        )
        for source, of_episodes in zip(sources, texts.of_episodes, strict=True)
    ]


def _open(
    config: DataConfig, trainer: BatchShape, seed: int, split: str
) -> tuple[Plan, tuple[Source, ...], PromptTexts, SampleForm]:
    _check_settings(config, trainer)
    sources = open_sources(config, split)
    texts = PromptTexts.encode(TextTokenizer.load(config.text_tokenizer), sources)
    image = image_format(sources)
    form = SampleForm(
        image=image_block_length(image.rows, image.columns),
        views=len(config.cameras),
        history=config.history,
        chunk=config.chunk,
        predicted=config.predicted_frames,
        state=config.state,
    )
    plan = Plan(
        source_windows(sources, texts, form),
        config.mixture,
        trainer.global_batch,
        trainer.sequence_length,
        seed,
        combined_fingerprint(sources),
    )
    return plan, sources, texts, form


def _check_settings(config: DataConfig, trainer: BatchShape) -> None:
    settings = {
        "data.history": config.history,
        "data.chunk": config.chunk,
        "data.predicted_frames": config.predicted_frames,
        "data.memory_megabytes": config.memory_megabytes,
        "data.readers": config.readers,
        "trainer.global_batch": trainer.global_batch,
        "trainer.micro_batch": trainer.micro_batch,
        "trainer.sequence_length": trainer.sequence_length,
    }
    for name, value in settings.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, expected at least 1")
    for name, value in (
        ("prefetch", config.prefetch),
        ("retry_seconds", config.retry_seconds),
        ("skip_bad_episodes", config.skip_bad_episodes),
    ):
        if not value >= 0:
            raise InputError(f"data.{name} is {value}, expected at least 0")
