"""The cache of a node: correct after any damage, bounded, shared, and never the reason of an error."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import CacheConfig, DataConfig
from data.errors import InputError
from data.storage.episode_cache import EpisodeCache, open_cache
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.stream.loader import TokenStream
from pretrain.config import TrainerConfig
from tests.support.shards_case import episode, equal, write_dataset

COUNT = 12
LIMIT = 40_000  # about five of the twelve episodes
FORK = multiprocessing.get_context("fork")


def name_of(number: int) -> str:
    return hashlib.sha256(bytes([number])).hexdigest()


def must_not_fetch() -> bytes:
    raise AssertionError("was not in the cache")


def get(cache: EpisodeCache, name: str, fetch: Callable[[], bytes]) -> bytes | InputError:
    (content,) = cache.get([name], lambda numbers: [fetch()])
    return content


def cached_files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("??/*")}


@pytest.fixture
def index(tmp_path: Path) -> DatasetIndex:
    write_dataset(tmp_path / "shards", count=COUNT)
    return DatasetIndex.load(str(tmp_path / "shards"), cache=EpisodeCache(tmp_path / "cache", 10**9))


def check(index: DatasetIndex, number: int) -> None:
    assert equal(read_episode(index, index.episodes[number]), episode(number, steps=4 + number))


def test_an_episode_that_was_read_is_in_the_cache(index: DatasetIndex, tmp_path: Path) -> None:
    for _ in range(2):
        for number in range(COUNT):
            check(index, number)
    for path in (tmp_path / "shards").glob("*.tar"):
        path.unlink()
    for number in range(COUNT):
        check(index, number)
    assert len(cached_files(tmp_path / "cache")) == COUNT
    assert int((tmp_path / "cache" / ".size").read_text()) == sum(cached_files(tmp_path / "cache").values())


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_file_is_fetched_again(index: DatasetIndex, tmp_path: Path, damage: str) -> None:
    check(index, 3)
    (path,) = (tmp_path / "cache").glob("??/*")
    whole = path.read_bytes()
    changed = {
        "flipped": whole[:500] + bytes([whole[500] ^ 1]) + whole[501:],
        "cut": whole[:-9],
        "empty": b"",
    }
    path.write_bytes(changed[damage])
    check(index, 3)
    assert path.read_bytes() == whole
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.unlink()
    path.write_bytes(changed[damage])
    with pytest.raises(InputError, match=r"shard .*, episode lift/demo_3, .*cannot be read"):
        read_episode(index, index.episodes[3])


def test_a_damaged_episode_is_not_stored(index: DatasetIndex, tmp_path: Path) -> None:
    entry = index.episodes[2]
    shard = tmp_path / "shards" / entry.shard
    content = bytearray(shard.read_bytes())
    content[entry.offset + 700] ^= 1
    shard.write_bytes(content)
    for _ in range(2):
        with pytest.raises(InputError, match="sha256"):
            read_episode(index, entry)
    assert cached_files(tmp_path / "cache") == {}


def test_the_least_recently_used_files_are_removed_first(tmp_path: Path) -> None:
    cache = EpisodeCache(tmp_path, limit=20 * 132)
    foreign = [tmp_path / "ab" / "notes.txt", tmp_path / "papers" / name_of(99)]
    for path in foreign:
        path.parent.mkdir()
        path.write_bytes(bytes(10_000))
    for number in range(20):
        get(cache, name_of(number), lambda: bytes(100))
        os.utime(tmp_path / name_of(number)[:2] / name_of(number), ns=(number, number))
    assert get(cache, name_of(0), must_not_fetch) == bytes(100)  # used just now
    get(cache, name_of(20), lambda: bytes(100))
    expected = {name_of(number) for number in (0, *range(3, 21))}  # space is freed for more than one
    assert set(cached_files(tmp_path)) - {"notes.txt"} == expected
    assert all(path.exists() for path in foreign)
    assert get(cache, name_of(21), lambda: bytes(3000)) == bytes(3000)  # larger than the limit
    assert set(cached_files(tmp_path)) - {"notes.txt"} == expected


@pytest.mark.parametrize("recorded", [b"", b"garbage", b"99999999999999999999", b"\x00" * 20])
def test_a_wrong_size_is_counted_again(tmp_path: Path, recorded: bytes) -> None:
    cache = EpisodeCache(tmp_path, limit=10 * 132)
    for number in range(8):
        get(cache, name_of(number), lambda: bytes(100))
    (tmp_path / ".size").write_bytes(recorded)
    for number in range(8, 30):
        get(cache, name_of(number), lambda: bytes(100))
        assert sum(cached_files(tmp_path).values()) <= 10 * 132
    assert len(cached_files(tmp_path)) >= 8
    assert int((tmp_path / ".size").read_text()) == sum(cached_files(tmp_path).values())


def test_a_full_disk_is_reported_once_and_changes_nothing(
    index: DatasetIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check(index, 0)
    before = cached_files(tmp_path / "cache")
    (tmp_path / "cache" / ".writing").symlink_to("/dev/full")
    for number in range(COUNT):
        check(index, number)
    assert cached_files(tmp_path / "cache") == before
    (line,) = caplog.messages
    assert "No space left on device; this process continues without storing episodes" in line
    assert not (tmp_path / "cache" / ".writing").is_symlink()


def test_impossible_folders_and_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"data\.cache\.dir=.*cannot be made \(Not a directory\)"):
        open_cache(str(tmp_path / "file" / "cache"), "1GB")
    with pytest.raises(InputError, match=r"data\.cache\.size=many: expected a size such as"):
        open_cache(None, "many")
    assert open_cache(None, "1GB") is None


def test_the_stream_is_the_same_with_a_cache(tmp_path: Path) -> None:
    write_dataset(tmp_path / "shards", count=COUNT)
    config = DataConfig(str(tmp_path / "shards"), chunk=2)
    cached = dataclasses.replace(config, cache=CacheConfig(str(tmp_path / "cache"), "0.04MB"))
    trainer = TrainerConfig(global_batch=8, sequence_length=1024)
    with TokenStream(config, trainer, seed=0) as one, TokenStream(cached, trainer, seed=0) as other:
        for step in range(6):
            (expected,), (found,) = one.micro_batches(step, 0, 1), other.micro_batches(step, 0, 1)
            assert np.array_equal(found.tokens, expected.tokens)
    assert 0 < sum(cached_files(tmp_path / "cache").values()) <= LIMIT


def start(index: DatasetIndex, role: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=role, args=(index, theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def reader(index: DatasetIndex, pipe: Connection, seed: int, rounds: int) -> None:
    """Read episodes in a random order; reports the first hundred."""
    random = np.random.default_rng(seed)
    for i in range(rounds):
        if i == 100:
            pipe.send("going")
        check(index, int(random.integers(COUNT)))
    pipe.send("done")


def stuck_writer(index: DatasetIndex, pipe: Connection) -> None:
    """Stop in the middle of a write, with the lock held and half a file written."""

    def stop(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        pipe.send("writing")
        signal.pause()
        return 0

    Path.write_bytes = stop  # pyright: ignore[reportAttributeAccessIssue] - of this process alone
    for number in range(COUNT):
        check(index, number)


def test_readers_share_it_and_may_be_killed(index: DatasetIndex, tmp_path: Path) -> None:
    cache = EpisodeCache(tmp_path / "cache", LIMIT)
    index = dataclasses.replace(index, cache=cache)
    stuck, reports = start(index, stuck_writer)
    assert reports.poll(60)
    readers = [start(index, reader, seed, 10**9 if seed == 0 else 600) for seed in range(4)]
    assert (tmp_path / "cache" / ".writing").exists()
    os.kill(stuck.pid, signal.SIGKILL)
    stuck.join()
    victim, pipe = readers[0]
    assert pipe.poll(60)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    while any(process.is_alive() for process, _ in readers):
        with cache._locked():
            assert sum(cached_files(tmp_path / "cache").values()) <= LIMIT
        readers[-1][0].join(0.05)
    assert [process.exitcode for process, _ in readers] == [-signal.SIGKILL, 0, 0, 0]
    assert victim.exitcode == stuck.exitcode == -signal.SIGKILL
    fresh = dataclasses.replace(index, cache=EpisodeCache(tmp_path / "cache", LIMIT))
    for number in range(COUNT):
        check(fresh, number)
    assert not (tmp_path / "cache" / ".writing").exists()
    assert 0.3 * LIMIT < sum(cached_files(tmp_path / "cache").values()) <= LIMIT
