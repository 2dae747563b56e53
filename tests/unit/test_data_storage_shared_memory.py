"""The cache in the memory of a node: of one user, bounded, there while somebody uses it, and no longer."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import os
import signal
import stat
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from data.config import CacheConfig, DataConfig
from data.storage import fetch_locks, shared_memory
from data.storage.episode_cache import EpisodeCache
from data.storage.shared_memory import open_shared_memory
from data.stream import datasets
from data.stream.datasets import open_datasets
from tests.support.shards_case import write_dataset
from tests.unit.test_data_storage_episode_cache import get, must_not_fetch, name_of

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any free space will do."""
    monkeypatch.setattr(shared_memory, "LEAST", 1)


def opened(parent: Path) -> EpisodeCache:
    cache = open_shared_memory(parent)
    assert cache is not None
    return cache


def folder_of(parent: Path) -> Path:
    return parent / f"worldvla-{os.getuid()}-episodes"


def test_the_last_user_removes_it(tmp_path: Path) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    folder = folder_of(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert get(one, name_of(0), lambda: b"content") == b"content"
    assert get(other, name_of(0), must_not_fetch) == b"content"
    one.close()
    assert get(other, name_of(0), must_not_fetch) == b"content"
    other.close()
    assert list(tmp_path.iterdir()) == []
    again = opened(tmp_path)
    assert get(again, name_of(0), lambda: b"content") == b"content"
    del again  # nobody closes it
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def user(parent: Path, pipe: Connection) -> None:
    cache = opened(parent)
    get(cache, name_of(1), lambda: b"of a process that is killed")
    pipe.send("stored")
    signal.pause()


def test_what_killed_processes_leave_is_used_and_removed(tmp_path: Path) -> None:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=user, args=(tmp_path, theirs), daemon=True)
    process.start()
    assert ours.poll(60)
    mine = opened(tmp_path)
    mine.close()
    assert folder_of(tmp_path).exists(), "the process uses it"
    process.kill()
    process.join()
    assert folder_of(tmp_path).exists()
    next_one = opened(tmp_path)
    assert get(next_one, name_of(1), must_not_fetch) == b"of a process that is killed"
    next_one.close()
    assert list(tmp_path.iterdir()) == []


def test_a_fork_does_not_leave_for_its_parent(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    process = FORK.Process(target=cache.close)
    process.start()
    process.join()
    assert folder_of(tmp_path).exists()
    other = opened(tmp_path)
    other.close()
    assert folder_of(tmp_path).exists()
    cache.close()
    assert list(tmp_path.iterdir()) == []


def come_and_go(parent: Path, rounds: int, pipe: Connection) -> None:
    for number in range(rounds):
        cache = opened(parent)
        content = bytes([number % 7]) * 50
        assert get(cache, name_of(number % 7), lambda content=content: content) == content
        cache.close()
    pipe.send("done")


def test_processes_that_come_and_go_at_the_same_time(tmp_path: Path) -> None:
    pipes: list[Connection] = []
    for _ in range(4):
        ours, theirs = FORK.Pipe()
        FORK.Process(target=come_and_go, args=(tmp_path, 60, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        assert pipe.poll(60)
        assert pipe.recv() == "done"
    opened(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("link", "it is a link; remove it"),
        ("file", "it is no folder; remove it"),
        ("open to others", "it is not of this user alone; remove it"),
    ],
)
def test_a_folder_that_is_not_ours_is_not_used(
    tmp_path: Path, kind: str, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, elsewhere = folder_of(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if kind == "link":
        folder.symlink_to(elsewhere)
    elif kind == "file":
        folder.write_bytes(b"")
    else:
        folder.mkdir()
        folder.chmod(0o755)
    assert open_shared_memory(tmp_path) is None
    (line,) = caplog.messages
    assert f"{folder} cannot be used ({found})" in line
    assert "each rank of this node reads for itself" in line
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", [".size", ".users"])
def test_a_folder_in_place_of_a_file_is_one_line(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = folder_of(tmp_path)
    folder.mkdir(mode=0o700)
    (folder / name).mkdir()
    assert open_shared_memory(tmp_path) is None
    (line,) = caplog.messages
    assert f"{folder} cannot be used (Is a directory)" in line
    if name == ".size":
        opened(tmp_path).close()  # who left removed it
        assert not folder.exists()


def test_a_process_that_is_stopped_while_it_removes_the_folder_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetch_locks, "PATIENCE", 0.05)
    folder = folder_of(tmp_path)
    folder.mkdir(mode=0o700)
    with (folder / ".users").open("wb") as users:
        fcntl.flock(users, fcntl.LOCK_EX)
        assert open_shared_memory(tmp_path) is None
    (line,) = caplog.messages
    assert f"{folder} cannot be used (another process holds the lock of .users and is stopped" in line
    opened(tmp_path).close()
    assert not folder.exists()


def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, other = os.getuid(), os.getuid() + 1
    (tmp_path / f"worldvla-{other}-episodes").mkdir(mode=0o700)  # of `real`
    monkeypatch.setattr(os, "getuid", lambda: other)
    assert open_shared_memory(tmp_path) is None
    assert "it is not of this user alone" in caplog.text
    assert (tmp_path / f"worldvla-{other}-episodes").stat().st_uid == real


def test_too_little_room_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shared_memory, "LEAST", 10**18)
    assert open_shared_memory(tmp_path) is None
    (line,) = caplog.messages
    assert f"MB of {tmp_path} are free, expected" in line
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert open_shared_memory(tmp_path) is None
    assert len(caplog.messages) == 1, "the first rank of the node says it"
    assert open_shared_memory(tmp_path / "none") is None


def test_it_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "LIMIT", 10 * 132)
    cache = opened(tmp_path)
    for number in range(30):
        get(cache, name_of(number), lambda: bytes(100))
        files = folder_of(tmp_path).glob("??/*")
        assert sum(path.stat().st_size for path in files) <= 10 * 132
    cache.close()
    monkeypatch.setattr(shared_memory, "SHARE", 0.5)
    monkeypatch.setattr(shared_memory, "LIMIT", 10**30)
    space = os.statvfs(tmp_path)
    cache = opened(tmp_path)
    assert cache._limit <= 0.6 * space.f_bavail * space.f_frsize
    cache.close()


def test_it_is_for_several_ranks_that_read_an_object_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "shards")
    here = DataConfig(str(tmp_path / "shards"), chunk=2)
    made: list[EpisodeCache] = []

    def open_in(parent: Path = tmp_path / "memory") -> EpisodeCache | None:
        parent.mkdir(exist_ok=True)
        made.append(opened(parent))
        return made[-1]

    monkeypatch.setattr(datasets, "open_shared_memory", open_in)

    def cache_of(config: DataConfig) -> EpisodeCache | None:
        return open_datasets(config)[0].index.cache

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cache_of(here) is None
    monkeypatch.setattr(datasets, "is_object_store", lambda url: True)
    assert cache_of(here) is made[0]
    assert cache_of(DataConfig(here.url, chunk=2, cache=CacheConfig(shared_memory=False))) is None
    on_disk = cache_of(DataConfig(here.url, chunk=2, cache=CacheConfig(str(tmp_path / "cache"))))
    assert on_disk is not None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert cache_of(here) is None
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert cache_of(here) is None
    assert len(made) == 1
