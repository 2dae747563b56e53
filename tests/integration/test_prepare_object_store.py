"""Preparation into an object store and out of one: as in a folder, also where requests fail."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import numpy as np
import pytest
from numpy.typing import NDArray

from data.config import PrepareConfig, SourceConfig, SpoolConfig
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.sources.registry import open_source
from data.storage import retries
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.storage.store import open_store
from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.lerobot_layout import recorded, write_lerobot
from tests.support.libero_layout import demonstration, write_file
from tests.support.object_server import BUCKET, ObjectServer, object_server
from tests.support.rlds_layout import write_recorded
from tests.support.webdataset_layout import write_steps

FORBIDDEN = 403


class Tokenizer:
    """Codes are one pixel of each 8 x 8; counts its calls."""

    pixels, rows, columns, codebook_size, sha256 = 64, 8, 8, 256, "a" * 64

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        self.calls += 1
        return frames[:, ::8, ::8, 0].astype(np.uint16)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with object_server(monkeypatch) as opened:
        yield opened


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration(seed=i) for i in range(8)])
    return PrepareConfig(source=str(tmp_path / "demos"), out=f"s3://{BUCKET}/shards", shard_megabytes=0.022)


def test_the_objects_are_those_of_a_folder_also_after_a_refusal(
    config: PrepareConfig, server: ObjectServer, tmp_path: Path
) -> None:
    prepare(Preparer(replace(config, out=str(tmp_path / "folder")), Tokenizer()))
    server.refuse = lambda method, path: FORBIDDEN if method == "PUT" and "shard-000002" in path else None
    with pytest.raises(InputError, match=r"shard-000002-\w+\.tar: cannot be written"):
        prepare(Preparer(config, Tokenizer()))
    with pytest.raises(InputError, match=r"no index\.json there"):
        DatasetIndex.load(config.out)
    server.refuse = lambda method, path: None
    tokenizer = Tokenizer()
    index = prepare(Preparer(config, tokenizer))
    assert tokenizer.calls == 2 * 4, "two of four shards were there"
    assert all(read_episode(index, entry).length == entry.length for entry in index.episodes)
    store = open_store(config.out)
    for path in (tmp_path / "folder").rglob("*.*"):
        assert store.read(str(path.relative_to(tmp_path / "folder"))) == path.read_bytes(), path


def rlds(folder: Path) -> None:
    write_recorded(folder, [recorded(6, seed) for seed in range(3)])


def lerobot(folder: Path) -> None:
    write_lerobot(folder, "v3.0", [recorded(6, seed) for seed in range(3)])


def webdataset(folder: Path) -> None:
    write_steps(folder / "a.tar", [(f"ep{seed}", recorded(6, seed)) for seed in range(3)])


@pytest.mark.parametrize("write", [rlds, lerobot, webdataset])
def test_demonstrations_are_read_from_a_store_that_fails_now_and_then(
    write: Callable[[Path], None], server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answers about each object are a 503, one that ends early, and a broken connection."""
    monkeypatch.setattr(retries, "pause", lambda seconds, over: None)
    write(tmp_path / "demos")
    url = f"s3://{BUCKET}/given/demos"
    for path in (tmp_path / "demos").rglob("*"):
        if path.is_file():
            open_store(url).write(str(path.relative_to(tmp_path / "demos")), path.read_bytes())
    local = PrepareConfig(source=str(tmp_path / "demos"), out=str(tmp_path / "of_folder"))
    expected = prepare(Preparer(local, Tokenizer()))
    proxy = FaultProxy(server.endpoint)
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        left = defaultdict[tuple[str, str], Iterator[Fault]](
            lambda: iter([Fault("refuse"), Fault("end", 90), Fault("reset", 90)])
        )
        given_faults: list[Fault] = []

        def fault(method: str, path: str) -> Fault | None:
            found = next(left[method, path], None) if method == "GET" and "?" not in path else None
            given_faults.extend([found] if found else [])
            return found

        proxy.fault = fault
        (tmp_path / "spool").mkdir()
        kept = SpoolConfig(dir=str(tmp_path / "spool"))
        given = replace(local, source=url, out=str(tmp_path / "of_store"), spool=kept)
        assert prepare(Preparer(given, Tokenizer())).fingerprint == expected.fingerprint
        assert Counter(each.kind for each in given_faults) == dict.fromkeys(
            ("refuse", "end", "reset"), len(left)
        )
        tokenizer = Tokenizer()
        again = Preparer(given, tokenizer)
        prepare(again)
        assert tokenizer.calls == 0, "the objects are those that it was prepared from"
        assert list((tmp_path / "spool").iterdir())
        again.close()
        assert len(list((tmp_path / "spool").iterdir())) == 1, "what the first one fetched"
    finally:
        proxy.stop()


def test_public_demonstrations_need_no_credentials(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server refuses requests without a signature but for objects that anybody may read."""
    rlds(tmp_path / "demos")
    client = boto3.client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
    for path in (tmp_path / "demos").iterdir():
        for folder, access in (("public", "public-read"), ("private", "private")):
            client.put_object(Bucket=BUCKET, Key=f"{folder}/{path.name}", Body=path.read_bytes(), ACL=access)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    public = SourceConfig(f"s3://{BUCKET}/public", anonymous=True)
    assert len(open_source(public).references()) == 3
    with pytest.raises(InputError, match=r"private/features\.json: cannot be looked up .*403"):
        open_source(SourceConfig(f"s3://{BUCKET}/private", anonymous=True))
