"""Mapped files of arrays: read as safetensors does, from any store; damaged and hostile ones are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from data.errors import InputError
from data.storage import mapped_arrays as mapped
from data.storage.store import FileStore, open_store

ARRAYS = {
    "size": np.arange(5, dtype=np.int64),
    "length": np.arange(7, dtype=np.int32),
    "sha256": np.arange(64, dtype=np.uint8).reshape(2, 32),
    "empty": np.zeros(0, np.int32),
}


class Remote:
    """A store that is no folder: objects are read by ranges."""

    def __init__(self, folder: Path) -> None:
        self._store, self.url = FileStore(folder), "s3://bucket"
        self.size, self.exists, self.read, self.write = (
            self._store.size, self._store.exists, self._store.read, self._store.write,
        )  # fmt: skip
        self.ranges: list[int] = []

    def cancel_retries(self) -> None:
        """Do nothing."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        self.ranges.append(size)
        return self._store.read_range(name, offset, size)


def test_arrays_are_those_of_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = save(ARRAYS)
    open_store(str(tmp_path)).write("a.safetensors", content)
    monkeypatch.setattr(mapped, "_CHUNK", 100)
    remote = Remote(tmp_path)
    for store in (open_store(str(tmp_path)), remote):
        views = mapped.array_views(mapped.map_object(store, "a.safetensors"), "x")
        assert views.keys() == load(content).keys()
        for name, array in load(content).items():
            assert views[name].dtype == array.dtype
            assert np.array_equal(views[name], array)
    assert remote.ranges == [100] * (len(content) // 100) + [len(content) % 100]


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "I32", "shape": [1, 2, 1], "data_offsets": [0, 8]},
        {"dtype": "I32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": [3], "data_offsets": [0, 12]},
        {"dtype": "I32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "I32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]},
        {"dtype": "I32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "I32", "shape": 2, "data_offsets": [0, 8]},
        {"dtype": "I32", "shape": [2]},
        [],
    ],
)
def test_arrays_that_reach_out_of_the_file_are_refused(entry: object) -> None:
    header = json.dumps({"a": entry}).encode()
    with pytest.raises(InputError, match=r"x: not a safetensors file \(a: "):
        mapped.array_views(len(header).to_bytes(8, "little") + header + bytes(8), "x")


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", bytes(8), b"\xff" * 40, b"\x64" + bytes(7) + b"{}", b"\x02" + bytes(7) + b"[]"],
)
def test_content_that_is_no_safetensors_file_is_refused(content: bytes) -> None:
    with pytest.raises(InputError, match="x: not a safetensors file"):
        mapped.array_views(content, "x")


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for store, place in ((open_store(str(tmp_path)), str(tmp_path)), (Remote(tmp_path), "s3://bucket")):
        for name in ("empty", "missing"):
            with pytest.raises(InputError, match=f"{place}/{name}: cannot be read"):
                mapped.map_object(store, name)
