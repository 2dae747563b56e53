from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from data.errors import InputError
from data.storage.store import open_store
from pretrain.checkpoint.boxes import Box, BoxedTensor, boxes_of_range
from pretrain.checkpoint.location import CheckpointPlace
from pretrain.checkpoint.manifest import Manifest, StoredFile, StoredTensor, pieces_file
from pretrain.checkpoint.pieces import PieceTable
from pretrain.checkpoint.tensor_stream import Take, TensorBlocks, read_parts, read_whole
from pretrain.checkpoint.verification import damaged, describe, describe_file
from pretrain.checkpoint.weights import load_weights

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
FILE = "rank_00000.safetensors"


@given(shape=SHAPES, data=st.data())
def test_boxes_hold_exactly_the_range_in_flat_order(shape: list[int], data: st.DataObject) -> None:
    count = int(torch.tensor(shape).prod())
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    numbers = torch.arange(count).view(shape)
    boxes = boxes_of_range(shape, start, stop)
    found = [
        numbers[tuple(slice(o, o + n) for o, n in zip(box.offset, box.shape, strict=True))].flatten()
        for box in boxes
    ]
    assert torch.equal(torch.cat([torch.empty(0, dtype=torch.int64), *found]), torch.arange(start, stop))
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


def test_a_boxed_tensor_shares_the_flat_memory() -> None:
    flat = torch.arange(7.0)
    tensor = BoxedTensor((4, 5), boxes_of_range((4, 5), 3, 10), flat)
    assert tensor.shape == (4, 5)
    shard = tensor.__get_tensor_shard__(tensor.__create_write_items__("x", tensor)[1].index)
    assert shard.tolist() == [[2.0, 3.0, 4.0, 5.0, 6.0]]
    shard.zero_()
    assert flat.tolist() == [0, 1, 0, 0, 0, 0, 0]


@given(shape=SHAPES, data=st.data())
def test_the_table_finds_the_pieces_that_overlap(shape: list[int], data: st.DataObject) -> None:
    count = int(torch.tensor(shape).prod())
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, count), max_size=4))), count]
    parts = [
        PieceTable.of([(0, writer, box) for box in boxes_of_range(shape, start, stop)], 4)
        for writer, (start, stop) in enumerate(pairwise(cuts))
    ]
    table = PieceTable.decode("here", PieceTable.joined(parts[::-1]).encode())
    assert table.problem({"x": tuple(shape)}) is None
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    found = table.pieces(0, len(shape), boxes_of_range(shape, start, stop))
    expected = {w for w, (a, b) in enumerate(pairwise(cuts)) if a < stop and start < b and a < b}
    assert {piece.writer for piece in found} == expected
    assert sum(piece.box.size for piece in table.pieces(0, len(shape))) == count


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([(0, 0, Box((0,), (3,)))], "the pieces of a do not make it up"),
        ([(0, 0, Box((2,), (4,)))], "a piece beyond a"),
        ([(1, 0, Box((0,), (4,)))], "a piece of an unknown parameter"),
    ],
)
def test_a_table_that_does_not_make_up_the_network_is_found(rows: list, problem: str) -> None:
    assert PieceTable.of(rows, 1).problem({"a": (4,)}) == problem


def empty_checkpoint(root: Path, step: int) -> Path:
    folder = root / f"step_{step:08d}"
    folder.mkdir(parents=True)
    Manifest(step, step, {"note": 1}, {}, {}).write(folder)
    return folder


def test_only_committed_checkpoints_count_and_the_newest_is_last(tmp_path: Path) -> None:
    assert CheckpointPlace(tmp_path / "nowhere").latest() is None
    for step in (100, 20, 3):
        empty_checkpoint(tmp_path, step)
    (tmp_path / "step_00000200").mkdir()
    (tmp_path / ".tmp-step_00000300-ab").mkdir()
    (tmp_path / "step_00000100" / "READY").unlink()
    place = CheckpointPlace(tmp_path)
    assert place.steps() == [3, 20]
    assert place.found() == {3: True, 20: True, 100: False, 200: False}
    assert place.where(20) == str(tmp_path / "step_00000020")


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    folder = empty_checkpoint(tmp_path, 1)
    assert Manifest.read(open_store(str(folder))).metadata == {"note": 1}
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"note": 1', '"note": 2'))
    with pytest.raises(InputError, match=r"manifest.json: checksum differs"):
        Manifest.read(open_store(str(folder)))


def test_a_folder_without_the_marker_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no committed checkpoint"):
        load_weights(tmp_path)


def commit(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    (folder / "READY").write_text(hashlib.sha256(text.encode()).hexdigest())


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"schema": 1}', '{"schema": 9}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    commit(tmp_path, text)
    with pytest.raises(InputError, match=r"not a checkpoint's manifest|schema 9"):
        Manifest.read(open_store(str(tmp_path)))


@pytest.mark.parametrize("name", ["../rank_00000.safetensors", "/etc/passwd", "READY"])
def test_a_manifest_cannot_name_files_that_are_not_its_own(tmp_path: Path, name: str) -> None:
    folder = empty_checkpoint(tmp_path, 1)
    values = json.loads((folder / "manifest.json").read_text())
    values["files"] = {name: {"bytes": 1, "sha256": "0"}}
    commit(folder, json.dumps(values))
    with pytest.raises(InputError, match="expected only its own rank files"):
        Manifest.read(open_store(str(folder)))


def test_a_table_cannot_name_writers_without_a_file(tmp_path: Path) -> None:
    pieces = PieceTable.of([(0, 7, Box((0,), (1,)))], 1).encode()
    (tmp_path / pieces_file()).write_bytes(pieces)
    files = {pieces_file(): describe(pieces)}
    Manifest(1, 1, {}, {"master/x": StoredTensor((1,))}, files).write(tmp_path)
    with pytest.raises(InputError, match=r"it names rank_00007\.safetensors, expected only its own"):
        load_weights(tmp_path)


def test_checkpoints_of_schema_1_are_still_read(tmp_path: Path) -> None:
    """Their manifest lists the pieces, and weights and moments lie in one file."""
    whole = torch.arange(20.0).view(4, 5)
    tensors: dict[str, torch.Tensor] = {}
    pieces = {"master/x": [], "exp_avg/x": []}
    for box in boxes_of_range((4, 5), 0, 20)[:1]:
        for name in pieces:
            tensors[f"{name}@0,0"] = whole.clone() + (name != "master/x")
            pieces[name].append([FILE, box.offset, box.shape])
    save_file(tensors, tmp_path / FILE)
    stored = describe_file(tmp_path / FILE)
    values = {
        "schema": 1,
        "step": 3,
        "optimizer_step": 3,
        "metadata": {},
        "files": {FILE: {"bytes": stored.bytes, "sha256": stored.sha256}},
        "tensors": {n: {"shape": [4, 5], "dtype": "float32", "pieces": p} for n, p in pieces.items()},
    }
    commit(tmp_path, json.dumps(values))
    assert torch.equal(load_weights(tmp_path)["x"], whole)
    manifest = Manifest.read(open_store(str(tmp_path)))
    assert manifest.file_of(0, "exp_avg") == FILE
    assert not manifest.only_weights


def test_damage_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / FILE
    path.write_bytes(b"abcd")
    store, files = open_store(str(tmp_path)), {path.name: describe_file(path)}
    assert damaged(store, files) == []
    path.write_bytes(b"abce")
    assert damaged(store, files) == [f"{FILE} differs from its checksum"]
    path.write_bytes(b"abc")
    assert damaged(store, files) == [f"{FILE} has 3 bytes, expected 4"]
    path.unlink()
    assert damaged(store, files) == [f"{FILE} is missing"]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, StoredFile, torch.Tensor]:
    """A file larger than several blocks, with a matrix between two others."""
    matrix = torch.from_numpy(np.random.default_rng(0).random((3000, 1000), dtype=np.float32))
    blocks = TensorBlocks({"a": torch.ones(3), "m": matrix, "z": torch.zeros(2, 2)})
    path = tmp_path / FILE
    path.write_bytes(b"".join(blocks))
    assert blocks.stored() == describe_file(path)
    return path, blocks.stored(), matrix


@pytest.mark.parametrize("reader", [read_whole, read_parts])
def test_parts_of_a_stored_tensor_arrive_in_another_dtype(written: tuple, reader: object) -> None:
    path, stored, matrix = written
    target = torch.full((2001, 100), 7.0, dtype=torch.bfloat16)
    take = Take((3000, 1000), (slice(500, 2501), slice(50, 150)), target)
    reader(open_store(str(path.parent)), FILE, stored, {"m": [take]})  # type: ignore[operator]
    assert torch.equal(target, matrix[500:2501, 50:150].bfloat16())


def test_a_tensor_that_the_file_does_not_hold_is_named(written: tuple) -> None:
    path, stored, _ = written
    for key, shape in (("b", (3,)), ("a", (4,))):
        take = Take(shape, (slice(0, 3),), torch.empty(3))
        with pytest.raises(InputError, match=f"{FILE} does not hold {key} as the manifest says"):
            read_whole(open_store(str(path.parent)), FILE, stored, {key: [take]})


@pytest.mark.parametrize("place", [0, 3, 40, -1])
def test_a_flipped_byte_anywhere_is_found_while_reading(written: tuple, place: int) -> None:
    path, stored, _ = written
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    take = Take((3,), (slice(0, 3),), torch.empty(3))
    with pytest.raises(InputError, match=f"{FILE} differs from its checksum"):
        read_whole(open_store(str(path.parent)), FILE, stored, {"a": [take]})
