"""Requests of a training's stream to an object store, counted by the server: they do not grow with the ranks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.config import CacheConfig, DataConfig
from data.contracts import PackedBatch
from data.storage.index import DatasetIndex
from data.storage.store import open_store
from data.stream import episode_memory, shard_runs, unit_reader
from data.stream.loader import TokenStream
from data.stream.samples import SampleForm
from data.stream.time_steps import TimeSteps
from data.tokens.image_block import image_block_length
from pretrain.config import TrainerConfig
from tests.support.object_server import BUCKET, ObjectServer, object_server
from tests.support.shards_case import episode, write_dataset

URL = f"s3://{BUCKET}/shards"
EPISODES, LENGTH, RANKS = 1025, 3, 16  # the first one is held out: 64 for each place of a step of 16 sequences
PLACES = 2  # of a sequence: an action and a world sample
STEPS = 64 * (LENGTH - 1)  # of an epoch
TRAINER = TrainerConfig(global_batch=RANKS, sequence_length=600)
FIELDS = ("tokens", "labels", "positions", "segments", "blocks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 1,024 short episodes for training, in a local folder."""
    folder = tmp_path_factory.mktemp("shards")
    write_dataset(folder, episodes=[episode(number, LENGTH) for number in range(EPISODES)], limit=1 << 20)
    return folder


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server that has the same data set, and no more requests than those of a test."""
    with object_server(monkeypatch) as server:
        store = open_store(URL)
        for path in folder.iterdir():
            store.write(path.name, path.read_bytes())
        server.requests.clear()
        yield server


@pytest.fixture
def memory_for_open_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for three times the episodes that the places of one rank draw from at a time."""
    form = SampleForm(image_block_length(8, 8), chunk=2)
    steps = 3 * PLACES * DataConfig().shuffle_episodes * LENGTH
    monkeypatch.setattr(episode_memory, "MEGABYTE", TimeSteps.empty(steps, form).nbytes)


def config(url: str, shuffle: str = "local") -> DataConfig:
    return DataConfig(url, chunk=2, history=1, shuffle=shuffle, memory_megabytes=1)  # pyright: ignore[reportArgumentType]


def read_epoch(settings: DataConfig, rank: int, ranks: int, peers: threading.Barrier | None = None) -> list[PackedBatch]:
    """The batches of a rank in the first epoch; `peers` go from step to step together."""
    with TokenStream(settings, TRAINER, seed=0) as stream:
        batches: list[PackedBatch] = []
        for step in range(STEPS):
            if peers is not None:
                peers.wait()
            batches += stream.micro_batches(step, rank, ranks)
        return batches


def check_equal(parts: Sequence[Sequence[PackedBatch]], whole: Sequence[PackedBatch]) -> None:
    """Batches of all ranks, joined, are those of one rank."""
    for step, expected in enumerate(whole):
        for field in FIELDS:
            joined = np.concatenate([getattr(part[step], field) for part in parts])
            assert np.array_equal(joined, getattr(expected, field)), (step, field)


def counted(server: ObjectServer) -> Counter[str]:
    """Requests since the last count: of `shards`, and by method of other objects."""
    requests = Counter(
        "shards" if method == "GET" and ".tar" in path else f"{method} {path.rpartition('/')[2][:8]}"
        for method, path in server.requests
    )
    server.requests.clear()
    return requests


@pytest.fixture(scope="module")
def whole(folder: Path) -> list[PackedBatch]:
    """The batches of one rank."""
    return read_epoch(config(str(folder)), 0, 1)


@pytest.fixture
def episodes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Episodes of every unit that was read."""
    read: list[int] = []
    original = unit_reader.read_episodes
    monkeypatch.setattr(
        unit_reader, "read_episodes", lambda index, entries: read.append(len(entries)) or original(index, entries)
    )
    return read


@pytest.mark.usefixtures("memory_for_open_episodes")
@pytest.mark.parametrize("ranks", [4, RANKS])
def test_an_epoch_of_any_ranks_costs_less_than_a_request_an_episode(
    server: ObjectServer, whole: list[PackedBatch], ranks: int, episodes_read: list[int]
) -> None:
    """Ranks on nodes of their own, without a cache."""
    parts = [read_epoch(config(URL), rank, ranks) for rank in range(ranks)]
    check_equal(parts, whole)
    requests = counted(server)
    print(ranks, requests, sum(episodes_read))
    assert EPISODES / 8 < requests.pop("shards") <= 1.1 * EPISODES
