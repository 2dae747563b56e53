"""gs:// and az://: what s3:// does, against a server of each."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.config import DataConfig, PrepareConfig
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.storage import retries
from data.storage.bulk_store import open_bulk
from data.storage.store import open_store
from data.stream.loader import TokenStream
from pretrain.config import TrainerConfig
from tests.integration.test_prepare_object_store import Tokenizer
from tests.support import azure_server
from tests.support.clouds import Cloud, cloud
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.libero_layout import demonstration, write_file
from tests.support.object_server import BUCKET, object_server


@pytest.fixture(params=["gs", "az"])
def there(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    with cloud(request.param, tmp_path, monkeypatch) as found:
        yield found


def test_what_is_written_is_listed_read_and_removed(there: Cloud) -> None:
    place = open_bulk(f"{there.url}/some/prefix")
    assert place.folders() == []
    blocks = [bytes([i]) * (9 << 20) for i in range(3)]  # more than one part of an upload
    place.write_blocks("step_1/large", (memoryview(block) for block in blocks), sum(map(len, blocks)))
    place.put("step_1/READY", b"old")
    place.put("step_1/READY", b"new")
    place.put("step_2/x", b"")
    assert place.folders() == ["step_1", "step_2"]
    assert place.names("step_1") == ["READY", "large"]
    with pytest.raises(OSError, match=r"y: 3 bytes were written, 4 expected"):
        place.write_blocks("step_2/y", [b"abc"], 4)
    store = open_store(place.url)
    assert store.read("step_1/large") == b"".join(blocks)
    assert store.read_range("step_1/large", (9 << 20) - 1, 2) == b"\x00\x01"
    assert (store.read("step_1/READY"), store.size("step_1/READY"), store.size("none")) == (b"new", 3, None)
    with pytest.raises(InputError, match=r"step_1/READY: cut short: 3 bytes found, bytes 5 to 7 expected"):
        store.read_range("step_1/READY", 5, 2)
    with pytest.raises(InputError, match=r"none: cannot be read"):
        store.read("none")
    assert store.read_range("step_1/READY", 0, 3) == b"new"
    place.put("step_1/READY", b"yet another")
    with pytest.raises(InputError, match=r"step_1/READY: was replaced since this run first read it"):
        store.read_range("step_1/READY", 0, 3)
    place.remove("step_1", ["READY", "not there", "large"])
    assert place.folders() == ["step_2"]


def test_all_objects_go_though_the_store_tells_that_some_are_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google's storage answers a deletion of what is not there with 404, and obstore stops at that."""
    with object_server(monkeypatch) as server:
        monkeypatch.setenv("GOOGLE_BASE_URL", server.endpoint)
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "test")
        server.refuse = lambda method, path: 404 if method == "DELETE" and "gone" in path else None
        place = open_bulk(f"gs://{BUCKET}/some/prefix")
        names = [f"{number:03d}" for number in range(100)]
        for name in names:
            place.put(f"step_1/{name}", b"")
        place.remove("step_1", ["gone", "gone too", *names])
        assert place.names("step_1") == []


def test_a_data_set_is_prepared_there_and_streamed_from_there(there: Cloud, tmp_path: Path) -> None:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(seed=i) for i in range(8)])
    here = PrepareConfig(
        source=str(tmp_path / "demos"),
        out=str(tmp_path / "shards"),
        shard_megabytes=0.022,
        compression="zstd",
    )
    config = replace(here, out=f"{there.url}/shards")
    prepare(Preparer(here, Tokenizer()))
    prepare(Preparer(config, Tokenizer()))
    store = open_store(config.out)
    for path in (tmp_path / "shards").rglob("*.*"):
        assert store.read(str(path.relative_to(tmp_path / "shards"))) == path.read_bytes(), path
    again = Tokenizer()
    prepare(Preparer(config, again))
    assert again.calls == 0, "all of it was there"
    trainer = TrainerConfig(global_batch=2, sequence_length=1024)
    ours, local = DataConfig(config.out, chunk=2), DataConfig(here.out, chunk=2)
    with TokenStream(ours, trainer, seed=0) as stream, TokenStream(local, trainer, seed=0) as expected:
        for step in range(4):
            (found,), (wanted,) = stream.micro_batches(step, 0, 1), expected.micro_batches(step, 0, 1)
            assert np.array_equal(found.tokens, wanted.tokens)


@pytest.mark.parametrize("kind", ["reset", "end", "refuse"])
def test_broken_answers_are_asked_for_again(
    there: Cloud, monkeypatch: pytest.MonkeyPatch, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retries, "pause", lambda seconds, over: pauses.append(seconds))
    content = np.random.default_rng(0).bytes(3_000_000)
    proxy = FaultProxy(there.endpoint)
    try:
        there.point_to(proxy.endpoint, monkeypatch)
        store = open_store(f"{there.url}/prefix")
        left = iter([Fault("refuse")] * 2)
        proxy.fault = lambda method, path: next(left, None)
        store.write("x", content)
        assert len(pauses) == 2
        left = iter([Fault(kind, 1_000_000), Fault(kind, 700_000), Fault(kind, -9)])
        assert store.read_range("x", 1000, 2_500_000) == content[1000:2_501_000]
        assert len(proxy.requests) == 3 + 4
        assert f"{there.url}/prefix: " in caplog.text
    finally:
        proxy.stop()


def test_wrong_credentials_are_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with cloud("az", tmp_path, monkeypatch) as there:
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(b"another key").decode())
        with pytest.raises(InputError, match=r"az://bucket/x: cannot be read .*403"):
            open_store(there.url).read("x")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", azure_server.KEY)
        with pytest.raises(InputError, match=r"az://no-bucket/x: cannot be written .*404"):
            open_store("az://no-bucket").write("x", b"")
