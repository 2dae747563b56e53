"""Requests of a stream to an object store, counted by the server: they do not grow with the ranks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from data.config import CacheConfig, DataConfig
from data.contracts import PackedBatch
from data.prepare.statistics import summarise
from data.storage import shared_memory
from data.storage.index import DatasetIndex
from data.storage.shared_memory import open_shared_memory
from data.storage.store import open_store
from data.stream import datasets
from data.stream.episodes import episode_memory, unit_reader
from data.stream.episodes.time_steps import TimeSteps
from data.stream.loader import TokenStream
from data.stream.samples import SampleForm
from data.tokens.image_block import image_block_length
from pretrain.config import TrainerConfig
from tests.support import shards_case
from tests.support.object_server import BUCKET, ObjectServer, object_server
from tests.support.shards_case import episode, write_dataset

URL = f"s3://{BUCKET}/shards"
RANKS = 16  # at most, with a sequence each
LENGTHS = [3 + number % 2 for number in range(64 * RANKS)]  # time steps: 64 episodes for each place of a step
PLACES = 2  # of a sequence: an action and a world sample
STEPS = sum(length - 1 for length in LENGTHS) // RANKS  # of an epoch
TRAINER = TrainerConfig(global_batch=RANKS, sequence_length=300)
FIELDS = ("tokens", "labels", "positions", "segments", "blocks", "action_targets")

Batches = list[PackedBatch]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of many short episodes in a local folder; the first one is held out."""
    folder = tmp_path_factory.mktemp("shards")
    episodes = [episode(number, length) for number, length in enumerate([3, *LENGTHS])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards_case, "summarise", lambda arrays: summarise(arrays[:9]))  # of all it takes long
        write_dataset(folder, episodes=episodes, limit=1 << 20)
    return folder


@pytest.fixture(scope="module")
def whole(folder: Path) -> Batches:
    """The batches of one rank in an epoch of the local order."""
    return read_steps(config(str(folder)), 0, 1)


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """A server that has the same data set; its list of requests begins after it was written."""
    with object_server(monkeypatch) as server:
        store = open_store(URL)
        for path in folder.iterdir():
            store.write(path.name, path.read_bytes())
        server.requests.clear()
        yield server


@pytest.fixture
def memory_for_open_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte: twice the episodes that the places of a sequence draw from at a time."""
    form = SampleForm(image_block_length(8, 8), chunk=2)
    steps = 2 * PLACES * DataConfig().shuffle_episodes * max(LENGTHS)
    monkeypatch.setattr(episode_memory, "MEGABYTE", TimeSteps.empty(steps, form).nbytes)


@pytest.fixture
def episodes_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many episodes each unit had that was read."""
    read: list[int] = []
    original = unit_reader.read_episodes
    monkeypatch.setattr(
        unit_reader,
        "read_episodes",
        lambda index, entries: read.append(len(entries)) or original(index, entries),
    )
    return read


def config(url: str, ranks: int = 1, cache: Path | None = None) -> DataConfig:
    """Settings of one of `ranks`, with memory for its own sequences."""
    on_disk = CacheConfig(None if cache is None else str(cache))
    return DataConfig(
        url, chunk=2, history=1, shuffle="local", memory_megabytes=RANKS // ranks, cache=on_disk
    )


def read_steps(
    settings: DataConfig, rank: int, ranks: int, steps: int = STEPS, peers: threading.Barrier | None = None
) -> Batches:
    """The first batches of a rank; `peers` begin each step together."""
    with TokenStream(settings, TRAINER, seed=0) as stream:
        batches: Batches = []
        for step in range(steps):
            if peers is not None:
                peers.wait()
            batches += stream.micro_batches(step, rank, ranks)
        return batches


def check_equal(parts: Sequence[Batches], expected: Batches) -> None:
    """Batches of all ranks, joined, are those of one rank."""
    for step, whole in enumerate(expected):
        for field in FIELDS:
            joined = np.concatenate([getattr(part[step], field) for part in parts])
            assert np.array_equal(joined, getattr(whole, field)), (step, field)


def counted(server: ObjectServer) -> tuple[int, Counter[str]]:
    """Range requests of shards, and all other requests, by their method and object."""
    names = [(method, path.rpartition("/")[2]) for method, path in server.requests]
    others = Counter(
        f"{method} {name.partition('-')[0]}" for method, name in names if not name.endswith(".tar")
    )
    assert {method for method, name in names if name.endswith(".tar")} <= {"GET"}
    return sum(name.endswith(".tar") for _, name in names), others


@pytest.mark.usefixtures("memory_for_open_episodes")
@pytest.mark.parametrize("ranks", [4, RANKS])
def test_an_epoch_costs_less_than_a_request_an_episode_for_any_number_of_ranks(
    server: ObjectServer, whole: Batches, ranks: int, episodes_read: list[int]
) -> None:
    """Each rank on a node of its own, without a cache."""
    index = DatasetIndex.load(URL)  # in use in this process, as by a training
    server.requests.clear()
    parts = [read_steps(config(URL, ranks), rank, ranks) for rank in range(ranks)]
    check_equal(parts, whole)
    shards, others = counted(server)
    assert len(LENGTHS) / 8 <= shards <= 1.1 * len(LENGTHS) / 3, "most blocks of four episodes are one range"
    assert len(LENGTHS) <= sum(episodes_read) <= 1.1 * len(LENGTHS), "and bytes"
    assert others == {"GET index.json": ranks}, "the columns of the episodes are read once in a process"
    assert len(index.episodes) == 1 + len(LENGTHS)


@pytest.mark.usefixtures("memory_for_open_episodes")
def test_peers_on_a_node_share_each_fetch(server: ObjectServer, whole: Batches, tmp_path: Path) -> None:
    """Four ranks, each with two tensor-parallel peers that ask for the same at the same time."""
    settings, peers = config(URL, 4, tmp_path / "cache"), threading.Barrier(8)
    with ThreadPoolExecutor(8) as threads:
        parts = list(threads.map(lambda i: read_steps(settings, i // 2, 4, STEPS, peers), range(8)))
    check_equal(parts[::2], whole)
    check_equal(parts[1::2], whole)
    shards, _ = counted(server)
    assert shards <= 1.1 * len(LENGTHS) / 4, "blocks of four episodes, each asked for once"


def test_a_data_set_that_fits_is_read_by_runs_once_a_node(
    server: ObjectServer, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the full order each rank needs every episode: whole shards, which the ranks of a node share."""
    settings = replace(config(URL), shuffle="full", memory_megabytes=512)
    shards_there = len(list(folder.glob("*.tar")))
    first = read_steps(replace(settings, url=str(folder)), 0, 1, steps=2)
    check_equal([read_steps(settings, rank, 2, steps=2) for rank in range(2)], first)
    assert counted(server)[0] == 2 * shards_there, "two nodes"
    server.requests.clear()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(shared_memory, "LEAST", 1)
    monkeypatch.setattr(datasets, "open_shared_memory", partial(open_shared_memory, tmp_path))
    peers = threading.Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        parts = list(threads.map(lambda rank: read_steps(settings, rank, 2, 2, peers), range(2)))
    check_equal(parts, first)
    assert counted(server)[0] == shards_there, "one node"
    assert list(tmp_path.iterdir()) == [], "the last of its processes removes what they shared"
