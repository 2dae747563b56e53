from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cluster.inspect.checkpoint import verify_checkpoint
from data.errors import InputError, StorageError
from data.safetensors_header import encode_header
from data.storage.store import open_store
from pretrain.checkpoint.boxed_tensor import BoxedTensor
from pretrain.checkpoint.boxes import Box, boxes_of_range
from pretrain.checkpoint.chunks import ChunkTable
from pretrain.checkpoint.location import CheckpointLocation
from pretrain.checkpoint.manifest import Manifest, StoredFile, StoredTensor, chunk_table_file
from pretrain.checkpoint.ready import DamagedCheckpointError
from pretrain.checkpoint.tensor_blocks import SafetensorsBlocks
from pretrain.checkpoint.tensor_stream import ReadRequest, read_partially, read_verified
from pretrain.checkpoint.verification import find_damage, find_table_damage
from pretrain.checkpoint.weights import load_weights

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
FILE = "rank_00000.safetensors"


@given(shape=SHAPES, data=st.data())
def test_boxes_are_exactly_the_range_in_flat_order(shape: list[int], data: st.DataObject) -> None:
    count = int(torch.tensor(shape).prod())
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    numbers = torch.arange(count).view(shape)
    boxes = boxes_of_range(shape, start, stop)
    parts = [numbers[box.slices].flatten() for box in boxes]
    assert torch.equal(torch.cat([torch.empty(0, dtype=torch.int64), *parts]), torch.arange(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


def test_boxed_tensor_shares_the_flat_memory() -> None:
    flat = torch.arange(7.0)
    tensor = BoxedTensor((4, 5), boxes_of_range((4, 5), 3, 10), flat)
    assert tensor.shape == (4, 5)
    shard = tensor.__get_tensor_shard__(tensor.__create_write_items__("x", tensor)[1].index)
    assert shard.tolist() == [[2.0, 3.0, 4.0, 5.0, 6.0]]
    shard.zero_()
    assert flat.tolist() == [0, 1, 0, 0, 0, 0, 0]


@given(shape=SHAPES, data=st.data())
def test_table_finds_the_chunks_that_overlap(shape: list[int], data: st.DataObject) -> None:
    count = int(torch.tensor(shape).prod())
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, count), max_size=4))), count]
    tables = [
        ChunkTable.of([(0, writer, box) for box in boxes_of_range(shape, start, stop)], 4)
        for writer, (start, stop) in enumerate(pairwise(cuts))
    ]
    table = ChunkTable.decode("here", ChunkTable.concatenated(tables[::-1]).encode())
    assert table.inconsistency({"x": tuple(shape)}) is None
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    chunks = table.chunks(0, len(shape), boxes_of_range(shape, start, stop))
    expected = {w for w, (a, b) in enumerate(pairwise(cuts)) if a < stop and start < b and a < b}
    assert {chunk.writer for chunk in chunks} == expected
    assert sum(chunk.box.size for chunk in table.chunks(0, len(shape))) == count


@pytest.mark.parametrize(
    ("rows", "inconsistency"),
    [
        ([(0, 0, Box((0,), (3,)))], "the chunks of a do not make it up"),
        ([(0, 0, Box((2,), (4,)))], "a chunk beyond a"),
        ([(1, 0, Box((0,), (4,)))], "a chunk of an unknown parameter"),
    ],
)
def test_table_that_does_not_make_up_the_network_is_described(rows: list, inconsistency: str) -> None:
    assert ChunkTable.of(rows, 1).inconsistency({"a": (4,)}) == inconsistency


@pytest.mark.parametrize("dimensions", [9, 10**12])
def test_table_of_too_many_dimensions_is_refused(dimensions: int) -> None:
    columns = {"parameter": (0,), "writer": (0,), "offset": (0, dimensions), "shape": (0, dimensions)}
    content = encode_header((name, "int32", shape) for name, shape in columns.items())
    manifest = Manifest(1, 1, {}, {"master/x": StoredTensor((1,))}, {})
    with pytest.raises(DamagedCheckpointError, match=f"{dimensions} dimensions, expected at most 8"):
        manifest.chunk_table("here", content)


def empty_checkpoint(root: Path, step: int) -> Path:
    folder = root / f"step_{step:08d}"
    folder.mkdir(parents=True)
    Manifest(step, step, {"note": 1}, {}, {}).write(folder)
    return folder


def test_only_committed_checkpoints_are_listed_and_the_newest_is_last(tmp_path: Path) -> None:
    assert CheckpointLocation(tmp_path / "nowhere").latest() is None
    for step in (100, 20, 3):
        empty_checkpoint(tmp_path, step)
    (tmp_path / "step_00000200").mkdir()
    (tmp_path / "other_00000300").mkdir()
    (tmp_path / "step_00000100" / "READY").unlink()
    location = CheckpointLocation(tmp_path)
    assert location.steps() == [3, 20]
    assert location.scan() == {3: True, 20: True, 100: False, 200: False}
    assert location.checkpoint_url(20) == str(tmp_path / "step_00000020")


def test_changed_manifest_is_refused(tmp_path: Path) -> None:
    folder = empty_checkpoint(tmp_path, 1)
    assert Manifest.read(open_store(str(folder))).metadata == {"note": 1}
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"note": 1', '"note": 2'))
    with pytest.raises(InputError, match=r"manifest.json: checksum differs"):
        Manifest.read(open_store(str(folder)))


def test_folder_without_ready_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no committed checkpoint"):
        load_weights(tmp_path)


def commit(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    (folder / "READY").write_text(hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[]", '{"schema": 2}', '{"schema": 1}', '{"schema": 9}', '{"schema": "2"}']
)
def test_content_that_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    commit(tmp_path, text)
    with pytest.raises(
        InputError, match=r"not a checkpoint's manifest|schema ([19]|'2'), this program reads 2"
    ):
        Manifest.read(open_store(str(tmp_path)))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *((place, value) for place in ("step", "optimizer_step") for value in ("Infinity", "NaN", "-1")),
        *((place, str(2**53 + 1)) for place in ("step", "optimizer_step", "bytes", "shape")),
        *((place, value) for place in ("bytes", "shape") for value in ("-Infinity", "NaN", "-4")),
        ("shape", str(10**40)),
        ("shape", f"{2**32}, {2**31}"),
        ("shape", f"0, {2**53}, {2**53}"),
        ("shape", ", ".join("1" * 9)),
    ],
)
def test_numbers_that_cannot_be_are_damage(tmp_path: Path, place: str, value: str) -> None:
    stored = {"step": "3", "optimizer_step": "3", "bytes": "4", "shape": f"{2**32}, {2**30}"}

    def manifest(numbers: dict[str, str]) -> str:
        tensors = f'{{"master/x": {{"shape": [{numbers["shape"]}]}}}}'
        files = f'{{"{FILE}": {{"bytes": {numbers["bytes"]}, "sha256": "0"}}}}'
        steps = f'"step": {numbers["step"]}, "optimizer_step": {numbers["optimizer_step"]}'
        return f'{{"schema": 2, {steps}, "metadata": {{}}, "files": {files}, "tensors": {tensors}}}'

    commit(tmp_path, manifest(stored))
    assert Manifest.read(open_store(str(tmp_path))).weights["x"].shape == (2**32, 2**30)
    commit(tmp_path, manifest(stored | {place: value}))
    with pytest.raises(DamagedCheckpointError, match=r"not a checkpoint's manifest \((Value|Overflow)Error"):
        load_weights(tmp_path)


@pytest.mark.parametrize("name", ["../rank_00000.safetensors", "/etc/passwd", "READY"])
def test_manifest_cannot_name_files_outside_its_checkpoint(tmp_path: Path, name: str) -> None:
    folder = empty_checkpoint(tmp_path, 1)
    values = json.loads((folder / "manifest.json").read_text())
    values["files"] = {name: {"bytes": 1, "sha256": "0"}}
    commit(folder, json.dumps(values))
    with pytest.raises(InputError, match="expected only its own rank files"):
        Manifest.read(open_store(str(folder)))


@pytest.mark.parametrize(
    ("tensors", "files", "missing"),
    [
        (["master/x"], [], "rank_00007"),
        (["master/x", "exp_avg/x"], ["rank_00007"], "rank_00007.optimizer"),
    ],
)
def test_table_cannot_name_writers_without_a_file(
    tensors: list[str], files: list[str], missing: str, tmp_path: Path
) -> None:
    table = ChunkTable.of([(0, 7, Box((0,), (1,)))], 1).encode()
    (tmp_path / chunk_table_file()).write_bytes(table)
    stored = {f"{name}.safetensors": StoredFile(1, "0" * 64) for name in files}
    stored[chunk_table_file()] = StoredFile.of(table)
    Manifest(1, 1, {}, {name: StoredTensor((1,)) for name in tensors}, stored).write(tmp_path)
    with pytest.raises(InputError, match=rf"it names {missing}\.safetensors, expected only its own"):
        load_weights(tmp_path)
    manifest, store = Manifest.read(open_store(str(tmp_path))), open_store(str(tmp_path))
    found = f"its table of chunks is wrong (it names {missing}.safetensors, expected only its own rank files)"
    row: dict[str, Any] = {"path": str(tmp_path)}
    verify_checkpoint(row, lambda _: None)
    assert row["damaged"][-1] == f"{chunk_table_file()}: {found}"
    assert row["verified"] is False
    assert find_table_damage(store, manifest, [f"{chunk_table_file()} is missing"]) == []


def test_each_kind_of_damage_is_described(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"abcd")
    store, files = open_store(str(tmp_path)), {path.name: StoredFile.of_path(path)}
    assert find_damage(store, files) == []
    path.write_bytes(b"abce")
    assert find_damage(store, files) == [f"{FILE} differs from its checksum"]
    path.write_bytes(b"abc")
    assert find_damage(store, files) == [f"{FILE} has 3 bytes, expected 4"]
    path.unlink()
    assert find_damage(store, files) == [f"{FILE} is missing"]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, StoredFile, torch.Tensor]:
    """A file larger than several blocks, with a matrix between two others."""
    matrix = torch.from_numpy(np.random.default_rng(0).random((3000, 1000), dtype=np.float32))
    blocks = SafetensorsBlocks({"a": torch.ones(3), "m": matrix, "z": torch.zeros(2, 2)})
    path = tmp_path / FILE
    path.write_bytes(b"".join(blocks))
    assert blocks.stored_file() == StoredFile.of_path(path)
    return path, blocks.stored_file(), matrix


@pytest.mark.parametrize("reader", [read_verified, read_partially])
def test_part_of_a_stored_tensor_is_read_into_another_dtype(written: tuple, reader: object) -> None:
    path, stored, matrix = written
    target = torch.full((2001, 100), 7.0, dtype=torch.bfloat16)
    request = ReadRequest((3000, 1000), (slice(500, 2501), slice(50, 150)), target)
    reader(open_store(str(path.parent)), FILE, stored, {"m": [request]})  # type: ignore[operator]
    assert torch.equal(target, matrix[500:2501, 50:150].bfloat16())


def test_tensor_that_the_file_does_not_hold_is_named(written: tuple) -> None:
    path, stored, _ = written
    for key, shape in (("b", (3,)), ("a", (4,))):
        request = ReadRequest(shape, (slice(0, 3),), torch.empty(3))
        with pytest.raises(InputError, match=f"{FILE} does not hold {key} as the manifest says"):
            read_verified(open_store(str(path.parent)), FILE, stored, {key: [request]})


@pytest.mark.parametrize("position", [0, 3, 40, -1])
def test_flipped_byte_anywhere_is_detected_while_reading(written: tuple, position: int) -> None:
    path, stored, _ = written
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    request = ReadRequest((3,), (slice(0, 3),), torch.empty(3))
    with pytest.raises(InputError, match=f"{FILE} differs from its checksum"):
        read_verified(open_store(str(path.parent)), FILE, stored, {"a": [request]})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("READY", b"", "READY has 0 bytes that are no manifest's checksum"),
        ("READY", b"\xff" * 64, "READY has 64 bytes"),
        ("READY", b"0" * 64 + b" manifest-0123", "READY has 78 bytes"),
        ("READY", b"0" * 64 + b" manifest-01234567.json", "manifest-01234567.json is missing"),
        ("manifest.json", b"", "manifest.json: checksum differs from the one in READY"),
        ("manifest.json", None, "manifest.json is missing"),
    ],
)
def test_damaged_marker_or_manifest_is_damage_and_not_a_mistake(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    folder = empty_checkpoint(tmp_path, 1)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(DamagedCheckpointError) as caught:
        Manifest.read(open_store(str(folder)))
    assert str(caught.value).startswith(f"{folder}: damaged: {expected}")


@pytest.mark.parametrize("missing", [True, False])
def test_damaged_chunk_table_is_damage(tmp_path: Path, missing: bool) -> None:
    if not missing:
        (tmp_path / "pieces.safetensors").write_bytes(b"cut")
    manifest = Manifest(1, 1, {}, {}, {"pieces.safetensors": StoredFile.of(b"whole")})
    with pytest.raises(DamagedCheckpointError, match=r"damaged: pieces.safetensors (is missing|differs)"):
        manifest.read_chunk_table(open_store(str(tmp_path)))
    with pytest.raises(DamagedCheckpointError, match="take another checkpoint"):
        manifest.chunk_table("here", b"no table")


def test_a_storage_that_does_not_answer_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"abcd")
    store, files = open_store(str(tmp_path)), {path.name: StoredFile.of_path(path)}

    def unanswered(*_: object) -> bytes:
        raise StorageError("s3://bucket/run: cannot be read (connection refused)")

    monkeypatch.setattr(type(store), "read_range", unanswered)
    with pytest.raises(StorageError, match="connection refused"):
        find_damage(store, files)
