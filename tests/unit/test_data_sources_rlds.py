"""RLDS data sets are read as written, without TensorFlow; damaged ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import CameraNames, SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.sources.registry import open_source, read_demonstrations
from data.sources.tfrecord import masked_checksum
from tests.support.rlds_layout import NAME, write_rlds


def episode(steps: int, seed: int, text: str = "Lift the cube") -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (steps, 32, 32, 3), dtype=np.uint8),
        "action": random.normal(size=(steps, 7)).astype(np.float32),
        "state": random.normal(size=(steps, 8)).astype(np.float32),
        "text": text,
    }


def read(folder: Path, **settings: Any) -> list[Demonstration]:
    return list(read_demonstrations(SourceConfig(str(folder), **settings)))


@pytest.mark.parametrize(
    ("content", "checksum"), [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43)]
)
def test_checksums_are_crc32c_rotated_by_15_bits_and_shifted(content: bytes, checksum: int) -> None:
    rotated = int(f"{checksum:032b}"[-15:] + f"{checksum:032b}"[:-15], 2)  # values of RFC 3720
    assert masked_checksum(content) == (rotated + 0xA282EAD8) % 2**32


def test_demonstrations_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = [episode(4, 0), episode(6, 1, "push the cube"), episode(3, 2)]
    folder = write_rlds(tmp_path / "1.0.0", written)
    references = open_source(SourceConfig(str(folder))).references()
    assert [(r.key, r.length) for r in references] == [
        ("train/episode_000000", 4),
        ("train/episode_000001", 6),
        ("train/episode_000002", 3),
    ]
    found = read(folder)
    assert [d.instruction for d in found] == ["lift the cube", "push the cube", "lift the cube"]
    assert {d.suite for d in found} == {NAME}
    for demonstration, expected in zip(found, written, strict=True):
        assert np.array_equal(demonstration.frames["agent"], expected["image"])
        assert np.array_equal(demonstration.actions, expected["action"])
        assert np.array_equal(demonstration.states, expected["state"])
    assert read(folder, state=[])[1].states.tolist() == [[0.0] * 8] * 6
    turned = read(folder, rotate=True, cameras=CameraNames(wrist="observation/image"))[0]
    assert np.array_equal(turned.frames["wrist"], written[0]["image"][:, ::-1, ::-1])


def first_file(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / f"{NAME}-train.tfrecord-00000-of-00001"
        path.write_bytes(change(path.read_bytes()))

    return damage


def changed(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


def flipped(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (first_file(flipped), "content of the record at offset 0 does not have its checksum"),
        (first_file(lambda b: bytes([b[0] ^ 1]) + b[1:]), "length of the record at offset 0"),
        (first_file(lambda b: b[:-5]), "cut short in the record at offset"),
        (first_file(lambda b: b + b[:7]), "cut short in the record at offset"),
        (first_file(lambda b: b + b), "has 4 time steps, expected 2|records"),
        (changed("dataset_info.json", "{DATASET}", "../{DATASET}"), "expected a plain name"),
        (changed("dataset_info.json", '"2"', '"3"'), "expected 3"),
        (changed("dataset_info.json", '"tfrecord"', '"riegeli"'), "fileFormat is 'riegeli'"),
        (changed("features.json", '"7"', '"6"'), "action has 6 numbers a step, expected 7"),
        (changed("features.json", '"action"', '"act"'), "no action among"),
        (changed("features.json", '"image": {"image"', '"image": {"video"'), "cannot identify the third"),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage: Callable[[Path], None], reason: str) -> None:
    folder = write_rlds(tmp_path / "set", [episode(4, 0), episode(5, 1)], files=1)
    damage(folder)
    with pytest.raises(InputError, match=reason):
        read(folder)


def test_missing_features_are_named(tmp_path: Path) -> None:
    folder = write_rlds(tmp_path / "set", [episode(4, 0)], files=1)
    features = json.loads((folder / "features.json").read_text())
    step = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    step["observation"]["featuresDict"]["features"]["pose"] = {
        "tensor": {"shape": {"dimensions": ["8"]}, "dtype": "float32", "encoding": "none"}
    }
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(InputError, match="no feature steps/observation/pose"):
        read(folder, state=["observation/pose"])
    with pytest.raises(InputError, match=r"gripper has 1 numbers a step, expected 8; .*state=\[\]"):
        read(folder, state=["observation/gripper"])
