"""Listing, uploads and deletion, equally in a folder and in an object store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from data.errors import InputError
from data.storage.bulk_store import BulkStore, open_bulk
from data.storage.store import open_store
from tests.support.object_server import BUCKET, ObjectServer, object_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    with object_server(monkeypatch) as running:
        yield running


@pytest.fixture(params=["folder", "objects"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> BulkStore:
    if request.param == "folder":
        return open_bulk(str(tmp_path / "place"))
    request.getfixturevalue("server")
    return open_bulk(f"s3://{BUCKET}/some/prefix")


def test_written_objects_are_listed_read_and_removed(place: BulkStore) -> None:
    assert place.folders() == []
    assert place.names("step_1") == []
    blocks = [bytes([i]) * (9 << 20) for i in range(3)]  # more than one part of an upload
    place.write_blocks("step_1/large", (memoryview(block) for block in blocks), sum(map(len, blocks)))
    place.put("step_1/READY", b"old")
    place.put("step_1/READY", b"new")
    place.put("step_2/x", b"")
    place.put("top", b"")
    assert place.folders() == ["step_1", "step_2"]
    assert place.names("step_1") == ["READY", "large"]
    store = open_store(place.url)
    assert store.read("step_1/large") == b"".join(blocks)
    assert store.read("step_1/READY") == b"new"
    place.remove("step_1", ["READY", "large", "not there"])
    assert place.folders() == ["step_2"]


def test_a_wrong_length_is_an_error(place: BulkStore) -> None:
    with pytest.raises(OSError, match=r"x: 3 bytes were written, 4 expected"):
        place.write_blocks("x", [b"abc"], 4)


def test_an_object_of_one_part_takes_one_request(server: ObjectServer) -> None:
    place = open_bulk(f"s3://{BUCKET}/prefix")
    blocks = [bytes(12 << 20), memoryview(bytes(4 << 20))]  # as much as one part
    server.requests.clear()
    place.write_blocks("step_1/one", blocks, 16 << 20)
    assert server.requests == [("PUT", f"/{BUCKET}/prefix/step_1/one")]
    server.requests.clear()
    place.write_blocks("step_1/two", [*blocks, b"x"], (16 << 20) + 1)
    methods = [method for method, _ in server.requests]
    assert sorted(methods) == ["HEAD", "POST", "POST", "PUT", "PUT"], "begin, two parts, end, length"
    assert open_store(place.url).size("step_1/two") == (16 << 20) + 1


def test_an_error_of_the_server_names_the_url(server: ObjectServer) -> None:
    place = open_bulk(f"s3://{BUCKET}/prefix")
    server.refuse = lambda method, path: 403 if method in ("PUT", "POST") else None
    with pytest.raises(OSError, match=r"s3://bucket/prefix/x: cannot be written"):
        place.put("x", b"abc")
    with pytest.raises(OSError, match=r"s3://bucket/prefix/x: cannot be written"):
        place.write_blocks("x", [b"abc"], 3)
    with pytest.raises(OSError, match=r"s3://bucket/prefix/f: cannot be removed"):
        place.remove("f", ["x"])
    server.refuse = lambda method, path: 403
    with pytest.raises(InputError, match=r"s3://bucket/prefix: cannot be listed"):
        place.folders()


def test_a_folder_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="Not a directory"):
        open_bulk(str(tmp_path / "file")).write_blocks("step_1/x", [b""], 0)
