"""One of several threads and processes fetches an episode; the others wait, but never for ever."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from data.errors import InputError
from data.storage import fetch_locks
from data.storage.episode_cache import EpisodeCache
from data.storage.fetch_locks import FetchLocks

FORK = multiprocessing.get_context("fork")
NAMES = [hashlib.sha256(bytes([number])).hexdigest() for number in range(6)]


def content_of(name: str) -> bytes:
    return name.encode() * 10


def read(cache: EpisodeCache, names: Sequence[str], fetched: list[str]) -> None:
    """Read names; what had to be fetched is appended to `fetched`."""

    def fetch(numbers: list[int]) -> list[bytes | InputError]:
        fetched.extend(names[number] for number in numbers)
        return [content_of(names[number]) for number in numbers]

    assert cache.get(names, fetch) == [content_of(name) for name in names]


def test_threads_that_want_the_same_names_fetch_each_once(tmp_path: Path) -> None:
    cache, fetched, together = EpisodeCache(tmp_path, 10**9), list[str](), threading.Barrier(6)

    def reader(number: int) -> None:
        together.wait()
        for names in (NAMES[number:] + NAMES[:number], NAMES[::-1]):
            read(cache, names, fetched)

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(reader, range(6)))
    assert sorted(fetched) == sorted(NAMES)


def test_locks_of_other_names_are_free(tmp_path: Path) -> None:
    locks, reached = FetchLocks(tmp_path / "locks"), list[str]()
    with locks.held(NAMES[:2]), locks.held(NAMES[2:]):
        reached.append("inside")
    with locks.held(NAMES):
        reached.append("again")
    assert reached == ["inside", "again"]


def holder(folder: Path, pipe: Connection) -> None:
    """Be in the middle of a fetch until the end."""

    def fetch(numbers: list[int]) -> list[bytes | InputError]:
        pipe.send(numbers)
        signal.pause()
        return []

    EpisodeCache(folder, 10**9).get(NAMES[:3], fetch)


def reader(folder: Path, pipe: Connection) -> None:
    fetched: list[str] = []
    pipe.send("started")
    read(EpisodeCache(folder, 10**9), NAMES, fetched)
    pipe.send(fetched)


@pytest.fixture
def held(tmp_path: Path) -> BaseProcess:
    """A process that fetches three of the names and does not come to an end."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=holder, args=(tmp_path, theirs), daemon=True)
    process.start()
    assert ours.poll(60)
    assert ours.recv() == [0, 1, 2]
    return process


def test_a_process_that_is_killed_while_it_fetches_leaves_its_names_to_the_others(
    tmp_path: Path, held: BaseProcess
) -> None:
    pipes: list[Connection] = []
    others: list[BaseProcess] = []
    for _ in range(2):
        ours, theirs = FORK.Pipe()
        others.append(FORK.Process(target=reader, args=(tmp_path, theirs)))
        others[-1].start()
        assert ours.poll(60)
        assert ours.recv() == "started"
        pipes.append(ours)
    assert not pipes[0].poll(0.2), "the names are on their way"
    assert held.pid is not None
    os.kill(held.pid, signal.SIGKILL)
    fetched: list[str] = []
    for pipe, other in zip(pipes, others, strict=True):
        assert pipe.poll(60)
        fetched += pipe.recv()
        other.join()
    assert sorted(fetched) == sorted(NAMES)
    read(EpisodeCache(tmp_path, 10**9), NAMES, again := [])
    assert again == []
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {".size", ".fetching"}
    assert (tmp_path / ".fetching").stat().st_size == 0


def test_nobody_waits_for_ever(tmp_path: Path, held: BaseProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a process that is stopped, and not at all once the cache is closed."""
    monkeypatch.setattr(fetch_locks, "PATIENCE", 0.05)
    fetched: list[str] = []
    read(EpisodeCache(tmp_path, 10**9), NAMES, fetched)
    assert sorted(fetched) == sorted(NAMES)
    monkeypatch.setattr(fetch_locks, "PATIENCE", 7200.0)  # longer than a test may run
    for path in tmp_path.glob("??/*"):
        path.unlink()
    cache = EpisodeCache(tmp_path, 10**9)
    waiting = threading.Thread(target=read, args=(cache, NAMES, fetched))
    waiting.start()
    cache.cancel_waits()
    waiting.join()
    assert sorted(fetched) == sorted(2 * NAMES)
    held.kill()


def test_a_write_waits_for_a_stopped_one_only_so_long_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stopped, cache, fetched = EpisodeCache(tmp_path, 10**9), EpisodeCache(tmp_path, 10**9), list[str]()
    with stopped._locked():
        cancelled = EpisodeCache(tmp_path, 10**9)
        cancelled.cancel_waits()
        read(cancelled, NAMES, fetched)
        assert caplog.messages == []
        monkeypatch.setattr(fetch_locks, "PATIENCE", 0.05)
        read(cache, NAMES, fetched)
        (line,) = caplog.messages
        assert "holds the lock of .size and is stopped; this process continues without storing" in line
        assert "set data.cache.dir to a folder on a local disk" in line
    assert fetched == 2 * NAMES
    assert list(tmp_path.glob("??/*")) == []
    read(cancelled, NAMES, fetched)
    read(cache, NAMES, fetched)
    assert fetched == 3 * NAMES, "a lock that is free is taken without waiting"


def test_without_locks_everything_is_fetched_and_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fetch_locks.fcntl, "F_OFD_SETLK", 9999)  # as a system that does not know it
    cache, fetched = EpisodeCache(tmp_path, 10**9), list[str]()
    for name in NAMES:
        read(cache, [name], fetched)
        read(cache, [name], fetched)
    assert fetched == NAMES
    (line,) = caplog.messages
    assert "has no locks of ranges (Invalid argument)" in line
