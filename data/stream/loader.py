"""From the plan to token batches: what one data-parallel rank trains on in one step."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Self

from data.config import DataConfig
from data.contracts import PackedBatch
from data.stream.batch_assembler import BatchAssembler
from data.stream.datasets import combined_fingerprint, image_format
from data.stream.episodes.episode_memory import EpisodeMemory
from data.stream.order_choice import OrderReport, report_order
from data.stream.placeholder_batches import BlankEpisodes
from data.stream.setup import BatchShape, open_setup


class TokenStream:
    """Packed batches of one split; the batches of a step do not depend on earlier requests.

    One thread prepares the next steps while the current one trains; use as a context manager, or call
    `close`, to end it.

    Args:
        config: Where the data sets are and how samples are cut.
        trainer: Shape of the batches.
        seed: Seed of the order.
        split: One of `data.storage.episode_entry.SPLITS`, or `ALL_SPLITS`; None: `data.split`.

    Attributes:
        plan: The order.
        fingerprint: Checksum of all data sets of the training.
        image: How their frames were encoded.
        split: Name of the split.
        urls: Their URLs, for messages.
        sources: What the actions and states of each data set of the training are, by the numbers of
            `PackedBatch.sources`; also those without an episode in the split.
        text_tokenizer_sha256: Checksum of the text tokenizer.
        vocabulary_size: One more than the largest possible token id: the least vocabulary of the model.

    Raises:
        InputError: A data set is missing, a setting is invalid, or the sequences are too short.
    """

    def __init__(self, config: DataConfig, trainer: BatchShape, seed: int, split: str | None = None) -> None:
        setup = open_setup(config, trainer, seed, split)
        datasets, texts = setup.datasets, setup.texts
        self.plan = setup.plan
        self.split = split or config.split
        self.fingerprint, self.image = combined_fingerprint(datasets), image_format(datasets)
        self.sources = datasets[0].sources
        self.text_tokenizer_sha256 = texts.tokenizer_sha256
        self.urls = ", ".join(dataset.index.url for dataset in datasets)
        self.vocabulary_size = texts.vocabulary_size
        self._memory = EpisodeMemory(datasets, setup.forms, setup.config, setup.plan.blocks)
        self._caches = [dataset.index.cache for dataset in datasets if dataset.index.cache is not None]
        self._assembler = BatchAssembler(setup, self._memory)
        self._placeholder_assembler = lambda: BatchAssembler(
            setup, BlankEpisodes(datasets, setup.forms, config.cameras, self._memory.skipped)
        )
        self._setup = setup
        self._expected_ranks = 0  # of which the memory has been told
        self._micro_batch, self._prefetch = trainer.micro_batch, config.prefetch
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="token-stream")
        self._ahead: dict[tuple[int, int, int], Future[list[PackedBatch]]] = {}

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest possible sample: the least `max_positions` of the model."""
        return self.plan.longest_sample

    def epochs(self, step: int) -> dict[str, float]:
        """Epochs of each data set's windows before `step`, over all ranks.

        Returns:
            `{"<last part of the URL>/action": 1.25, "<last part of the URL>/world": 0.98, ...}`.
        """
        return self.plan.epochs(step)

    def report_order(self, data_size: int) -> OrderReport:
        """Describe the order of the windows, and the memory that it needs of each of `data_size` ranks."""
        setup = self._setup
        return report_order(setup.config, self.plan, setup.datasets, setup.forms, data_size)

    def micro_batches(self, step: int, data_rank: int, data_size: int) -> list[PackedBatch]:
        """The batches of data-parallel rank `data_rank` of `data_size` in optimiser step `step` (from 0).

        Joined over micro-batches and then ranks, the arrays are the same for any number of ranks.
        Tensor-parallel peers pass the same arguments and get the same batches.

        Returns:
            Micro-batches of `micro_batch` sequences (the last one holds the rest).

        Raises:
            InputError: The global batch does not divide by the ranks, or a shard is missing or damaged.
        """
        self._prepare(step, data_rank, data_size)
        return self._ahead.pop((step, data_rank, data_size)).result()

    def is_ready(self, step: int, data_rank: int, data_size: int, timeout: float) -> bool:
        """Wait up to `timeout` seconds for a step; whether `micro_batches` then returns or raises at once."""
        self._prepare(step, data_rank, data_size)
        return bool(wait([self._ahead[step, data_rank, data_size]], timeout).done)

    def placeholder_batches(self, step: int, data_rank: int, data_size: int) -> list[PackedBatch]:
        """Batches of the shape of `micro_batches` for a step that will not count; no episode is read.

        Frames, actions and states are blank; everything else is as planned.

        Raises:
            InputError: The global batch does not divide by the ranks.
        """
        return self._assemble(step, data_rank, data_size, self._placeholder_assembler())

    def _prepare(self, step: int, data_rank: int, data_size: int) -> None:
        requested = [(step + ahead, data_rank, data_size) for ahead in range(self._prefetch + 1)]
        for other in self._ahead.keys() - set(requested):  # prepared for another order of steps
            self._ahead.pop(other).cancel()
        for key in requested:
            if key not in self._ahead:
                self._ahead[key] = self._worker.submit(self._assemble, *key)

    def close(self) -> None:
        """End the threads; a batch in preparation is dropped, even while it waits for a store."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        self._memory.close()
        self._worker.shutdown()
        for cache in self._caches:
            cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assemble(
        self, step: int, data_rank: int, data_size: int, assembler: BatchAssembler | None = None
    ) -> list[PackedBatch]:
        first, last = self.plan.share(data_rank, data_size)
        if assembler is None and data_size != self._expected_ranks:
            self._expected_ranks = data_size
            self._memory.expect(self.report_order(data_size).open_megabytes)
        whole = (assembler or self._assembler).assemble(self.plan.step(step, first, last), first, last)
        size = self._micro_batch or last - first
        return [whole.rows(i, i + size) for i in range(0, last - first, size)]
