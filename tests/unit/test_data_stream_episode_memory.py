"""Episodes are read by units: blocks of the local order, runs of a shard, or one by one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.config import CacheConfig, DataConfig
from data.contracts import Episode, PackedBatch
from data.errors import InputError
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex
from data.stream.batch_assembler import BatchAssembler
from data.stream.episodes import episode_memory, shard_runs, unit_reader
from data.stream.episodes.episode_memory import EpisodeMemory
from data.stream.episodes.shard_runs import ShardRuns
from data.stream.order.episode_blocks import EpisodeBlocks
from data.stream.order.plan import PlannedWindows
from data.stream.setup import StreamSetup, open_setup
from pretrain.config import TrainerConfig
from tests.support.shards_case import write_dataset

COUNT = 13  # the first one is held out
TRAINER = TrainerConfig(global_batch=8, sequence_length=1024)
Units = list[list[int]]


@pytest.fixture
def setup(tmp_path: Path) -> StreamSetup:
    write_dataset(tmp_path / "shards", count=COUNT, limit=40_000)
    return open_setup(DataConfig(str(tmp_path / "shards"), chunk=2), TRAINER, seed=0)


@pytest.fixture
def units(setup: StreamSetup, monkeypatch: pytest.MonkeyPatch) -> Units:
    """The episodes that were read, unit by unit."""
    read: Units = []
    original = unit_reader.read_episodes
    keys = [entry.key for entry in setup.datasets[0].entries]

    def read_episodes(index: DatasetIndex, entries: Sequence[EpisodeEntry]) -> list[Episode | InputError]:
        read.append([keys.index(entry.key) for entry in entries])
        return original(index, entries)

    monkeypatch.setattr(unit_reader, "read_episodes", read_episodes)
    return read


def open_memory(setup: StreamSetup, size: int | None = None) -> EpisodeMemory:
    """The memory, whose order is local with blocks of `size` episodes (None: not local)."""
    blocks = [None if size is None else EpisodeBlocks(COUNT - 1, size)]
    return EpisodeMemory(setup.datasets, setup.forms, setup.config, blocks)


def windows_of(*episodes: int) -> PlannedWindows:
    """A world window of each of these episodes."""
    zeros = np.zeros(len(episodes), np.int64)
    return PlannedWindows(zeros, zeros + 1, zeros, np.array(episodes, np.int64), zeros, zeros)


def fetch(memory: EpisodeMemory, *episodes: int) -> list[int]:
    """The episodes whose windows were located."""
    parts = list(memory.fetch(windows_of(*episodes)))
    return sorted(episodes[which] for part in parts for which in part.which)


def batch_of(setup: StreamSetup, memory: EpisodeMemory, step: int) -> PackedBatch:
    planned = setup.plan.step(step)
    return BatchAssembler(setup, memory).assemble(planned, 0, setup.plan.global_batch)


def test_a_missing_episode_brings_its_block(setup: StreamSetup, units: Units) -> None:
    memory = open_memory(setup, 4)
    assert fetch(memory, 5, 6, 5, 11) == [5, 5, 6, 11]
    assert units == [[4, 5, 6, 7], [8, 9, 10, 11]]
    assert fetch(memory, 4, 7, 8) == [4, 7, 8]
    assert len(units) == 2
    memory.close()


def test_only_what_is_absent_is_requested_again(
    setup: StreamSetup, units: Units, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for 40 time steps, 20 of them together; episodes have 5 to 16."""
    monkeypatch.setattr(episode_memory, "_ring_sizes", lambda *_: [(40, 126)])
    memory = open_memory(setup, 3)
    assert fetch(memory, 0) == [0]
    assert units == [[0, 1, 2]]  # 5 + 6 + 7
    assert fetch(memory, 3) == [3]  # its block has 27, which is too much at once
    assert units[1:] == [[3]]
    assert fetch(memory, 4, 5) == [4, 5]
    assert units[2:] == [[4, 5]]
    for episodes in ((0, 11, 3), (7, 8), (10, 2, 1)):
        assert fetch(memory, *episodes) == sorted(episodes)
    memory.close()


@pytest.mark.parametrize("size", [None, 1, 3, 8, 50])
@pytest.mark.parametrize("little", [False, True])
def test_the_batches_do_not_depend_on_the_units(
    setup: StreamSetup, size: int | None, little: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_memory(setup)
    expected = [batch_of(setup, whole, step) for step in range(4)]
    if little:
        monkeypatch.setattr(episode_memory, "MEGABYTE", 1)
    memory = open_memory(setup, size)
    for step, reference in enumerate(expected):
        found = batch_of(setup, memory, step)
        for field in ("tokens", "labels", "positions", "segments", "blocks", "action_targets"):
            assert np.array_equal(getattr(found, field), getattr(reference, field)), field
    whole.close()
    memory.close()


def test_runs_of_a_shard_are_read_where_all_of_an_object_store_fits(
    setup: StreamSetup, units: Units, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [entry.shard for entry in setup.datasets[0].entries]
    memory = open_memory(setup)
    assert fetch(memory, 3, 4) == [3, 4]
    assert units == [[3], [4]], "a folder: no more than what the first batch needs"
    memory.close()
    monkeypatch.setattr(episode_memory, "is_object_store", lambda url: True)
    units.clear()
    memory = open_memory(setup)
    assert fetch(memory, *range(COUNT - 1)) == list(range(COUNT - 1))
    assert [{shards[episode] for episode in unit} for unit in units] == [
        {shard} for shard in dict.fromkeys(shards)
    ]
    assert sorted(episode for unit in units for episode in unit) == list(range(COUNT - 1))
    memory.close()
    monkeypatch.setattr(episode_memory, "MEGABYTE", 1)
    units.clear()
    memory = open_memory(setup)
    assert fetch(memory, 3, 4) == [3, 4]
    assert units == [[3], [4]], "most of a run would be overwritten before it is needed"
    memory.close()


def test_runs_are_neighbours_of_a_shard_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = write_dataset(tmp_path, count=40, limit=300_000).episodes
    largest = max(entry.size for entry in entries)
    monkeypatch.setattr(shard_runs, "LARGEST_RANGE", 3 * largest)
    shuffled = entries.select(np.random.default_rng(0).permutation(40)[:35])
    for table in (entries, shuffled):
        runs = ShardRuns(table)
        found = {tuple(runs.of(number)) for number in range(len(table))}
        assert sorted(number for run in found for number in run) == list(range(len(table)))
        assert all(number in runs.of(number) for number in range(len(table)))
        for run in found:
            members = [table[number] for number in run]
            assert len({member.shard for member in members}) == 1
            offsets = [member.offset for member in members]
            assert offsets == sorted(offsets)
            assert members[-1].offset + members[-1].size - offsets[0] <= 3 * largest
        assert len(found) <= len(table) / 1.5
    assert ShardRuns(EpisodeTable.of([entries[0]])).of(0) == [0]


def test_a_bad_neighbour_is_judged_when_a_window_needs_it(setup: StreamSetup, units: Units) -> None:
    bad = setup.datasets[0].entries[5]
    shard = Path(setup.config.url) / bad.shard
    content = bytearray(shard.read_bytes())
    content[bad.offset + 700] ^= 1
    shard.write_bytes(content)
    memory = open_memory(setup, 4)
    assert fetch(memory, 4, 6, 7) == [4, 6, 7]
    assert memory.skipped == []
    with pytest.raises(
        InputError, match=rf"shard {bad.shard}, episode {bad.key}, offset {bad.offset}: sha256"
    ):
        fetch(memory, 4, 5)
    assert units == [[4, 5, 6, 7], [5]]
    memory.close()


def test_a_memory_too_small_for_the_local_order_reads_no_blocks(
    setup: StreamSetup, units: Units, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be overwritten before they are needed; with a cache of the node windows are read from it."""
    monkeypatch.setattr(episode_memory, "_ring_sizes", lambda *_: [(40, 126)])
    cached = open_setup(
        replace(setup.config, cache=CacheConfig(str(tmp_path / "cache")), memory_megabytes=7), TRAINER, seed=0
    )
    for case, stored in ((setup, False), (cached, False), (cached, True)):
        memory = open_memory(case, 2)
        units.clear()
        memory.expect(case.config.memory_megabytes + 0.1)
        assert fetch(memory, 0, 1) == [0, 1]
        assert units == ([] if stored else [[0], [1]])
        memory.expect(case.config.memory_megabytes)
        assert fetch(memory, 3) == [3]
        assert units[-1] == [2, 3]
        memory.close()


def test_what_is_on_its_way_is_bounded(setup: StreamSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [entry.size for entry in setup.datasets[0].entries]
    lock, waiting, most = threading.Lock(), list[int](), list[int]()
    original = unit_reader.read_episodes

    def read_episodes(index: DatasetIndex, entries: Sequence[EpisodeEntry]) -> list[Episode | InputError]:
        with lock:
            waiting.append(sum(entry.size for entry in entries))
            most.append(sum(waiting))
        outcomes = original(index, entries)
        with lock:
            waiting.remove(sum(entry.size for entry in entries))
        return outcomes

    monkeypatch.setattr(unit_reader, "read_episodes", read_episodes)
    for limit, allowed in ((1, max(sizes)), (3 * max(sizes), 4 * max(sizes))):
        most.clear()
        monkeypatch.setattr(unit_reader, "BYTES_AHEAD", limit)
        memory = open_memory(setup)
        assert len(fetch(memory, *range(COUNT - 1))) == COUNT - 1
        assert max(most) <= allowed
        memory.close()


def test_nothing_is_requested_twice_while_it_is_on_its_way(
    setup: StreamSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first episode is bad, so the reading ends while the others are being read."""
    under_way, requested, released = set[str](), list[str](), threading.Event()
    original = unit_reader.read_episodes

    def read_episodes(index: DatasetIndex, entries: Sequence[EpisodeEntry]) -> list[Episode | InputError]:
        (key,) = (entry.key for entry in entries)
        requested.append(key)
        assert key not in under_way
        under_way.add(key)
        if len(requested) == 1:
            under_way.discard(key)
            return [InputError("bad")]
        released.wait()
        outcomes = original(index, entries)
        under_way.discard(key)
        return outcomes

    monkeypatch.setattr(unit_reader, "read_episodes", read_episodes)
    memory = open_memory(setup)
    with pytest.raises(InputError, match="bad"):
        fetch(memory, 0, 1, 2)
    threading.Timer(0.05, released.set).start()
    assert fetch(memory, 1, 2) == [1, 2]
    memory.close()
