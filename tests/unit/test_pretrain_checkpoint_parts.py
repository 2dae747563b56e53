from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import InputError
from pretrain.checkpoint.boxes import BoxedTensor, boxes_of_range
from pretrain.checkpoint.load import load_weights
from pretrain.checkpoint.manifest import Manifest, committed, damaged, describe_file, latest

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


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


def empty_checkpoint(root: Path, step: int) -> Path:
    folder = root / f"step_{step:08d}"
    folder.mkdir(parents=True)
    Manifest(step, step, {"note": 1}, {}, {}).write(folder)
    return folder


def test_only_committed_checkpoints_count_and_the_newest_is_last(tmp_path: Path) -> None:
    assert latest(tmp_path / "nowhere") is None
    for step in (100, 20, 3):
        empty_checkpoint(tmp_path, step)
    (tmp_path / "step_00000200").mkdir()
    (tmp_path / ".tmp-step_00000300-ab").mkdir()
    (tmp_path / "step_00000100" / "READY").unlink()
    assert [path.name for path in committed(tmp_path)] == ["step_00000003", "step_00000020"]
    assert latest(tmp_path) == tmp_path / "step_00000020"


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    folder = empty_checkpoint(tmp_path, 1)
    assert Manifest.read(folder).metadata == {"note": 1}
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"note": 1', '"note": 2'))
    with pytest.raises(InputError, match=r"manifest.json: checksum differs"):
        Manifest.read(folder)


def test_a_folder_without_the_marker_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no committed checkpoint"):
        load_weights(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", '{"schema": 1}', '{"schema": 9}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "READY").write_text(hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(InputError, match=r"not a checkpoint's manifest|schema 9"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("name", ["../rank_00000.safetensors", "/etc/passwd", "rank_00001.safetensors"])
def test_a_manifest_cannot_name_files_that_are_not_its_own(tmp_path: Path, name: str) -> None:
    folder = empty_checkpoint(tmp_path, 1)
    values = json.loads((folder / "manifest.json").read_text())
    values["tensors"] = {"master/x": {"shape": [1], "pieces": [[name, [0], [1]]]}}
    text = json.dumps(values)
    (folder / "manifest.json").write_text(text)
    (folder / "READY").write_text(hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(InputError, match="expected only its own rank files"):
        Manifest.read(folder)


def test_damage_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "rank_00000.safetensors"
    path.write_bytes(b"abcd")
    files = {path.name: describe_file(path)}
    assert damaged(tmp_path, files) == []
    path.write_bytes(b"abce")
    assert damaged(tmp_path, files) == ["rank_00000.safetensors differs from its checksum"]
    path.write_bytes(b"abc")
    assert damaged(tmp_path, files) == ["rank_00000.safetensors has 3 bytes, expected 4"]
    path.unlink()
    assert damaged(tmp_path, files) == ["rank_00000.safetensors is missing"]
