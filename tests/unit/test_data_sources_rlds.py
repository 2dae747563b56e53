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
from data.sources.rlds.tfrecord import masked_checksum
from tests.support.rlds_layout import NAME, episode, tensor, with_features, write_rlds


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
        (
            changed("features.json", '"7"', '"6"'),
            "holds 28 numbers, features.json says 6 a step",
        ),
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


def of_parts(folder: Path, count: int = 2) -> list[dict[str, Any]]:
    """A data set whose action is a dictionary, with words and a calibration for each episode."""
    written = [episode(4, seed) for seed in range(count)]
    for number, item in enumerate(written):
        action = item["action"]
        item["features"] = {
            "steps/action/world_vector": action[:, :3],
            "steps/action/rotation_delta": action[:, 3:6],
            "steps/action/open_gripper": [number == 0, True, False, True],
            "episode_metadata/words": [f"Push cube {number}".encode()],
            "episode_metadata/base": np.arange(8, dtype=np.float32) + number,
        }
    write_rlds(folder, written, files=1)

    def change(step: dict[str, Any], metadata: dict[str, Any]) -> None:
        parts = {
            "world_vector": tensor(3),
            "rotation_delta": tensor(3),
            "open_gripper": tensor(dtype="bool"),
        }
        step["action"] = {"featuresDict": {"features": parts}}
        metadata["words"] = {"text": {}}
        metadata["base"] = tensor(8)

    with_features(folder, change)
    return written


PARTS = ["action/world_vector", "action/rotation_delta", "action/open_gripper"]


def test_an_action_of_several_parts_is_joined(tmp_path: Path) -> None:
    written = of_parts(tmp_path / "set")
    found = read(tmp_path / "set", action=PARTS)
    for number, demonstration in enumerate(found):
        expected = np.concatenate(
            [written[number]["action"][:, :6], np.array([[number == 0], [1], [0], [1]])], axis=1
        )
        assert np.array_equal(demonstration.actions, expected.astype(np.float32))
    with pytest.raises(InputError, match=r"no action among .*several parts with action=\[NAME,NAME\]"):
        read(tmp_path / "set")
    with pytest.raises(InputError, match=r"action=\[\] names no part"):
        read(tmp_path / "set", action=[])


def test_features_of_an_episode_can_be_named(tmp_path: Path) -> None:
    of_parts(tmp_path / "set")
    found = read(
        tmp_path / "set",
        action=PARTS,
        instruction=["episode_metadata/words"],
        state=["episode_metadata/base"],
    )
    assert [each.instruction for each in found] == ["push cube 0", "push cube 1"]
    assert found[1].states.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]] * 4
    with pytest.raises(InputError, match=r"no episode_metadata/base among .*action/open_gripper"):
        read(tmp_path / "set", action=["episode_metadata/base"])


def test_several_instructions_are_refused_or_chosen(tmp_path: Path) -> None:
    item = episode(3, 0) | {"texts": ["Open it", "Open it", "Close it"]}
    folder = write_rlds(tmp_path / "set", [item], files=1)
    with pytest.raises(InputError, match=r"2 different instructions \('Open it', 'Close it'\)"):
        read(folder)
    assert read(folder, several_instructions="first")[0].instruction == "open it"
    assert read(folder, several_instructions="last")[0].task == "close_it"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = write_rlds(tmp_path / "set", [episode(4, 0), episode(4, 1)], files=2)
    (folder / f"{NAME}-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(InputError, match="tfrecord-00001-of-00002: no such file, expected a TFRecord file"):
        read(folder)


def test_a_data_set_of_another_robot_has_its_own_embodiment(tmp_path: Path) -> None:
    of_parts(tmp_path / "set")
    source = open_source(
        SourceConfig(str(tmp_path / "set"), action=[*PARTS[:2]], state=["observation/gripper"])
    )
    robot = source.embodiment()
    assert (robot.name, len(robot.action), robot.state) == ("cube_set", 6, ("s0",))
    found = source.read(source.references()[0])
    assert (found.actions.shape, found.states.shape) == ((4, 6), (4, 1))
