"""Preparation into an object store: the same objects as in a folder, and resumable when it was refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.config import PrepareConfig
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.storage.store import open_store
from tests.support.libero_layout import demonstration, write_file
from tests.support.object_server import BUCKET, ObjectServer, object_server

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
