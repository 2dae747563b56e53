"""Several episodes read at once: neighbours share a range, and each is verified and fails on its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from data.contracts import Episode
from data.errors import InputError, StorageError
from data.storage import episode_ranges
from data.storage.episode_cache import EpisodeCache
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_ranges import IN_VAIN, join_ranges
from data.storage.episode_reader import read_episodes
from data.storage.index import DatasetIndex
from data.storage.store import FileStore
from tests.support.shards_case import episode, equal, write_dataset

COUNT = 8
Range = tuple[str, int, int]


def entry(shard: str, offset: int, size: int) -> EpisodeEntry:
    return EpisodeEntry("x", shard, offset, size, "0" * 64, 5, "suite", "task", "words", "train")


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[Range]:
    """Every range that was requested."""
    requested: list[Range] = []
    original = FileStore.read_range

    def read_range(store: FileStore, name: str, offset: int, size: int) -> bytes:
        requested.append((name, offset, size))
        return original(store, name, offset, size)

    monkeypatch.setattr(FileStore, "read_range", read_range)
    return requested


def load(folder: Path, cached: bool = False) -> DatasetIndex:
    cache = EpisodeCache(folder / "cache", 10**9) if cached else None
    return DatasetIndex.load(str(folder / "shards"), cache=cache)


def check(index: DatasetIndex, numbers: Sequence[int], bad: dict[int, str] | None = None) -> None:
    """Read episodes at once; `bad`: what the errors of some of them say."""
    entries = [index.episodes[number] for number in numbers]
    for number, found in zip(numbers, read_episodes(index, entries), strict=True):
        if number in (bad or {}):
            at = entries[list(numbers).index(number)]
            assert isinstance(found, InputError)
            assert str(found).startswith(
                f"{index.url}: shard {at.shard}, episode {at.key}, offset {at.offset}: "
            )
            assert (bad or {})[number] in str(found)
        else:
            assert isinstance(found, Episode), found
            assert equal(found, episode(number, steps=4 + number))


def test_adjacent_episodes_of_a_shard_are_one_range() -> None:
    entries = [entry("a", 512 * i, 512) for i in (3, 0, 1, 2)] + [entry("b", 2048, 512), entry("b", 0, 512)]
    assert list(join_ranges(entries)) == [[1, 2, 3, 0], [5], [4]]
    assert list(join_ranges([])) == []


def test_a_gap_may_be_an_eighth_of_what_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert IN_VAIN == 1 / 8
    wide, small = entry("a", 0, 8000), 1000
    for gap, joined in ((0, True), (1125, True), (1126, False)):
        found = list(join_ranges([wide, entry("a", 8000 + gap, small)]))
        assert (len(found) == 1) == joined
    # Several gaps of one range count together.
    chain = [entry("a", 1100 * i, 1000) for i in range(20)]
    assert len(list(join_ranges(chain))) == 1
    for run in join_ranges([entry("a", 1130 * i, 1000) for i in range(20)]):
        assert 1130 * (len(run) - 1) - 1000 * (len(run) - 1) <= IN_VAIN * 1000 * len(run)
    monkeypatch.setattr(episode_ranges, "LARGEST_RANGE", 2500)
    assert list(join_ranges([entry("a", 1000 * i, 1000) for i in range(5)])) == [[0, 1], [2, 3], [4]]
    assert list(join_ranges([entry("a", 0, 9000), entry("a", 9000, 10)])) == [[0], [1]]


def test_episodes_that_overlap_are_not_joined() -> None:
    assert list(join_ranges([entry("a", 0, 1024), entry("a", 512, 512), entry("a", 1024, 512)])) == [
        [0],
        [1, 2],
    ]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_neighbours_are_fetched_by_one_request(tmp_path: Path, ranges: list[Range], compression: str) -> None:
    write_dataset(tmp_path / "shards", count=COUNT, compression=compression)  # pyright: ignore[reportArgumentType]
    index = load(tmp_path)
    ranges.clear()
    check(index, [5, 0, 3, 2, 4])
    assert [size for _, _, size in ranges] == [
        index.episodes[0].size,
        sum(index.episodes[number].size for number in (2, 3, 4, 5)),
    ]


def test_only_what_the_cache_lacks_is_fetched(tmp_path: Path, ranges: list[Range]) -> None:
    write_dataset(tmp_path / "shards", count=COUNT)
    index = load(tmp_path, cached=True)
    check(index, [2, 3])
    ranges.clear()
    check(index, range(COUNT))
    assert [offset for _, offset, _ in ranges] == [index.episodes[number].offset for number in (0, 4)]
    ranges.clear()
    check(index, range(COUNT))
    assert ranges == []


@pytest.mark.parametrize("cached", [False, True])
def test_a_damaged_episode_harms_no_neighbour(tmp_path: Path, ranges: list[Range], cached: bool) -> None:
    write_dataset(tmp_path / "shards", count=COUNT)
    index = load(tmp_path, cached)
    bad = index.episodes[3]
    shard = tmp_path / "shards" / bad.shard
    content = bytearray(shard.read_bytes())
    content[bad.offset + 700] ^= 1
    shard.write_bytes(content)
    ranges.clear()
    check(index, range(COUNT), {3: "sha256"})
    assert len(ranges) == 1
    ranges.clear()
    check(index, range(COUNT), {3: "sha256"})
    assert [size for *_, size in ranges] == [bad.size] if cached else len(ranges) == 1


@pytest.mark.parametrize("cached", [False, True])
def test_a_shard_that_is_cut_short_keeps_the_episodes_before(tmp_path: Path, cached: bool) -> None:
    write_dataset(tmp_path / "shards", count=COUNT)
    index = load(tmp_path, cached)
    cut = index.episodes[6]
    shard = tmp_path / "shards" / cut.shard
    shard.write_bytes(shard.read_bytes()[: cut.offset + 100])
    check(index, range(COUNT), {6: "cut short", 7: "cut short"})


def test_a_storage_that_is_away_is_not_asked_for_each_episode(
    tmp_path: Path, ranges: list[Range], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "shards", count=COUNT)
    index = load(tmp_path)

    def away(store: FileStore, name: str, offset: int, size: int) -> bytes:
        ranges.append((name, offset, size))
        raise StorageError("away")

    monkeypatch.setattr(FileStore, "read_range", away)
    ranges.clear()
    check(index, range(COUNT), dict.fromkeys(range(COUNT), "away"))
    assert len(ranges) == 1
