"""An object store with faults: every byte arrives, or an error names what is missing."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig
from data.errors import InputError
from data.storage import retries
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.storage.store import open_store
from data.stream.loader import TokenStream
from pretrain.config import TrainerConfig
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.object_server import BUCKET, object_server
from tests.support.shards_case import episode, equal, write_dataset

URL = f"s3://{BUCKET}/shards"
TRAINER = TrainerConfig(global_batch=4, sequence_length=1024)


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy before an S3 server, set as the endpoint in the environment."""
    with object_server(monkeypatch) as server:
        proxy = FaultProxy(server.endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        try:
            yield proxy
        finally:
            proxy.stop()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the pauses that a reader makes, without waiting for them."""
    made: list[float] = []
    monkeypatch.setattr(retries, "pause", lambda seconds, over: made.append(seconds))
    return made


@pytest.fixture
def index(proxy: FaultProxy, tmp_path: Path) -> DatasetIndex:
    """A data set of 8 episodes in one shard, in the object store."""
    write_dataset(tmp_path / "local", count=8)
    upload(tmp_path / "local")
    return DatasetIndex.load(URL)


def upload(folder: Path) -> None:
    store = open_store(URL)
    for path in folder.iterdir():
        store.write(path.name, path.read_bytes())


def first(count: int, fault: Fault) -> Callable[[str, str], Fault | None]:
    """This fault for the first requests of shards."""
    left = iter(range(count))
    return lambda method, path: fault if ".tar" in path and next(left, None) is not None else None


def check_all(index: DatasetIndex) -> None:
    assert len(index.episodes) == 8
    for i, entry in enumerate(index.episodes):
        assert equal(read_episode(index, entry), episode(i, steps=4 + i))


@pytest.mark.parametrize("kind", ["reset", "end", "refuse"])
@pytest.mark.parametrize("after", [0, 1, 700])
def test_a_broken_answer_is_requested_again(
    index: DatasetIndex, proxy: FaultProxy, pauses: list[float], kind: str, after: int
) -> None:
    proxy.fault = first(3, Fault(kind, after))
    check_all(index)
    assert sum(".tar" in path for _, path, _ in proxy.requests) >= 3 + len(index.episodes)


def test_a_read_continues_where_it_broke_off(proxy: FaultProxy, pauses: list[float]) -> None:
    content = np.random.default_rng(0).bytes(3_000_000)
    store = open_store(URL)
    store.write("large.tar", content)
    proxy.requests.clear()
    proxy.fault = first(1, Fault("end", 1_000_000))
    assert store.read_range("large.tar", 1000, 2_500_000) == content[1000:2_501_000]
    begins = [int(asked.removeprefix("bytes=").partition("-")[0]) for _, _, asked in proxy.requests]
    assert begins[0] == 1000
    assert 500_000 < begins[1] <= 1_001_000
    assert pauses == []  # bytes had come: no reason to wait
    proxy.requests.clear()
    proxy.fault = first(2, Fault("end", 900_000))
    assert store.read("large.tar") == content
    assert [asked != "" for _, _, asked in proxy.requests] == [False, True, True]


def test_a_burst_of_refusals_is_retried_and_reported_once(
    index: DatasetIndex, proxy: FaultProxy, pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    proxy.fault = first(12, Fault("refuse"))
    check_all(index)
    assert len(pauses) == 12
    assert all(0 <= wait <= min(0.1 * 2**i, 15) for i, wait in enumerate(pauses))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("data.")]
    assert len(lines) == 1
    assert lines[0].startswith(f"{URL}: ")
    assert "503" in lines[0]
    assert lines[0].endswith("trying again for up to 300 s")


def test_requests_are_retried_while_a_server_restarts(
    index: DatasetIndex, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def wait(seconds: float, over: threading.Event) -> None:
        """The server is back after 30 seconds of pauses."""
        back = sum(waited) < 30 <= sum(waited) + seconds
        waited.append(seconds)
        if back:
            proxy.back()

    monkeypatch.setattr(retries, "pause", wait)
    read_episode(index, index.episodes[0])
    proxy.away()
    check_all(index)
    assert sum(waited) >= 30


def test_writes_and_lookups_are_retried(proxy: FaultProxy, pauses: list[float]) -> None:
    left = iter([Fault("refuse")] * 3 + [Fault("reset", -9)] * 2)
    proxy.fault = lambda method, path: next(left, None)
    store = open_store(URL)
    store.write("part/x", b"0123456789")
    assert len(pauses) == 5
    left = iter([Fault("refuse")] * 3)
    assert store.size("part/x") == 10
    left = iter([Fault("refuse")] * 3)
    assert not store.exists("part/y")
    assert len(pauses) == 11
    assert store.read("part/x") == b"0123456789"


def test_retries_end_after_the_configured_time(
    proxy: FaultProxy, index: DatasetIndex, pauses: list[float]
) -> None:
    proxy.fault = first(10**6, Fault("refuse"))
    impatient = dataclasses.replace(index, retry_seconds=0.0)
    entry = impatient.episodes[3]
    expected = rf"shard {entry.shard}, episode lift/demo_3, offset {entry.offset}: .*cannot be read .*503"
    with pytest.raises(InputError, match=expected):
        read_episode(impatient, entry)
    with pytest.raises(InputError, match=r"cannot be read .*503.*; tried \d+ times in \d s"):
        read_episode(dataclasses.replace(index, retry_seconds=0.05), entry)
    proxy.away()
    with pytest.raises(InputError, match=r"cannot be read .*error sending request"):
        read_episode(impatient, entry)
    proxy.back()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 501])
def test_permanent_errors_are_not_retried(
    monkeypatch: pytest.MonkeyPatch, pauses: list[float], status: int
) -> None:
    with object_server(monkeypatch) as server:
        store = open_store(URL)
        store.write("x", b"1")
        server.requests.clear()
        server.refuse = lambda method, path: status
        with pytest.raises(InputError, match="cannot be read"):
            store.read("x")
        with pytest.raises(InputError, match="cannot be written"):
            store.write("x", b"2")
        assert len(server.requests) == 2
    assert pauses == []


def test_a_shard_that_is_replaced_during_the_run_is_refused(index: DatasetIndex, proxy: FaultProxy) -> None:
    entry = index.episodes[0]
    read_episode(index, entry)
    other = open_store(URL)
    content = other.read(entry.shard)
    other.write(entry.shard, content + bytes(512))
    with pytest.raises(
        InputError, match=rf"shard {entry.shard}, .*was replaced since this run first read it"
    ):
        read_episode(index, index.episodes[1])
    check_all(dataclasses.replace(index))  # a new run takes what is there: every episode is the same
    other.write(entry.shard, content)
    check_all(index)


@pytest.mark.parametrize("whole", [True, False])
def test_an_object_that_is_replaced_within_a_read_is_never_mixed(
    proxy: FaultProxy, pauses: list[float], whole: bool
) -> None:
    old, new = bytes(2_000_000), b"x" * 2_000_000
    store, other = open_store(URL), open_store(URL)
    other.write("x.tar", old)
    gets = 0

    def fault(method: str, path: str) -> Fault | None:
        nonlocal gets
        gets += method == "GET"
        if method == "GET" and gets == 2:
            other.write("x.tar", new)
        return Fault("end", 1_000_000) if method == "GET" and gets == 1 else None

    proxy.fault = fault
    if whole:
        assert store.read("x.tar") == new
    else:
        with pytest.raises(InputError, match=r"x\.tar: was replaced since this run first read it"):
            store.read_range("x.tar", 0, len(old))


Damage = Callable[[bytes, int, int], bytes | None]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "cut within data": (lambda shard, at, size: shard[: at + size - 700], "cut short"),
    "cut within a header": (lambda shard, at, size: shard[: at + 100], "cut short"),
    "cut between members": (lambda shard, at, size: shard[: at + 512], "cut short"),
    "cut between episodes": (lambda shard, at, size: shard[:at], "cut short"),
    "flipped": (lambda shard, at, size: flipped(shard, at + 700), "sha256"),
    "empty": (lambda shard, at, size: b"", "cut short"),
    "missing": (lambda shard, at, size: None, "cannot be read"),
}


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", ["folder", "objects"])
def test_damage_stops_the_stream_with_its_location(
    tmp_path: Path, request: pytest.FixtureRequest, damage: str, place: str
) -> None:
    change, reason = DAMAGES[damage]
    local = tmp_path / "damaged"
    whole = write_dataset(local, count=8)
    entry = whole.episodes[5]
    shard = local / entry.shard
    content = change(shard.read_bytes(), entry.offset, entry.size)
    shard.unlink()
    if content is not None:
        shard.write_bytes(content)
    url = str(local)
    if place == "objects":
        request.getfixturevalue("proxy")
        upload(local)
        url = URL
    config = DataConfig(url, chunk=2)
    named = rf"{url}: shard {entry.shard}, episode lift/demo_\d, offset \d+: .*{reason}"
    trainer = TrainerConfig(global_batch=64, sequence_length=1024)  # an epoch in one step
    with TokenStream(config, trainer, seed=0) as stream, pytest.raises(InputError, match=named):
        stream.micro_batches(0, 0, 1)
    with pytest.raises(InputError, match=rf"{url}: shard .*demo_5, offset {entry.offset}: .*{reason}"):
        read_episode(DatasetIndex.load(url), entry)


def test_an_index_of_other_shards_is_refused(tmp_path: Path) -> None:
    one, other = write_dataset(tmp_path / "one", count=8), write_dataset(tmp_path / "other", count=9)
    entry, wrong = one.episodes[0], other.episodes[3]
    shutil.copy(tmp_path / "one" / entry.shard, tmp_path / "other" / wrong.shard)
    assert equal(read_episode(other, wrong), episode(3, steps=7))  # the same bytes, by chance
    moved = dataclasses.replace(wrong, offset=wrong.offset + 512)
    with pytest.raises(InputError, match=rf"shard {wrong.shard}, episode lift/demo_3, .*sha256"):
        read_episode(other, moved)
    last = other.episodes[8]
    with pytest.raises(InputError, match=r"episode lift/demo_8, .*cut short"):
        read_episode(other, last)


def test_faults_do_not_change_the_batches(
    index: DatasetIndex, proxy: FaultProxy, pauses: list[float], tmp_path: Path
) -> None:
    random = np.random.default_rng(5)
    kinds = ["reset", "end", "refuse"]

    def fault(method: str, path: str) -> Fault | None:
        chosen = kinds[random.integers(3)], int(random.integers(4000))
        return Fault(*chosen) if random.random() < 0.5 else None

    proxy.fault = fault
    config, local = DataConfig(URL, chunk=2), DataConfig(str(tmp_path / "local"), chunk=2)
    with TokenStream(config, TRAINER, seed=0) as stream, TokenStream(local, TRAINER, seed=0) as expected:
        for step in range(12):
            (batch,), (reference,) = stream.micro_batches(step, 0, 1), expected.micro_batches(step, 0, 1)
            assert np.array_equal(batch.tokens, reference.tokens)


def test_a_byte_that_changes_in_transit_is_detected(index: DatasetIndex, proxy: FaultProxy) -> None:
    proxy.fault = first(1, Fault("flip", 700))
    entry = index.episodes[2]
    with pytest.raises(InputError, match=rf"episode {entry.key}, offset {entry.offset}: sha256"):
        read_episode(index, entry)


@pytest.mark.parametrize("allowed", [0, 8])
def test_a_stream_that_waits_for_a_server_closes_at_once(
    index: DatasetIndex,
    proxy: FaultProxy,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    allowed: int,
) -> None:
    # Longer than pytest lets a test run: only closing the stream can end a pause.
    monkeypatch.setattr(retries, "pause", lambda seconds, cancelled: cancelled.wait(7200))
    config = DataConfig(URL, chunk=2, skip_bad_episodes=allowed)
    with TokenStream(config, TRAINER, seed=0) as stream:
        proxy.away()
        assert not stream.is_ready(0, 0, 1, timeout=1.0)
    assert "skipped" not in caplog.text, "an episode whose request was cancelled is not bad"
    proxy.back()
