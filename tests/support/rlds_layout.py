"""Small RLDS data sets as TensorFlow Datasets lays them out, for the tests. Encodes protobuf by hand."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.sources.rlds.tfrecord import masked_checksum
from tests.support.lerobot_layout import Recorded

NAME = "cube_set"


def write_rlds(folder: Path, episodes: list[dict[str, Any]], files: int = 2) -> Path:
    """Write episodes; neighbours share a file.

    Each has `image` uint8 [T, H, W, 3], `action`, `state` and `text`, and may have `texts` of its steps, and
    `features` (path -> values) instead of its action.
    """
    folder.mkdir(parents=True)
    groups = [list(part) for part in np.array_split(np.arange(len(episodes)), files)]
    for number, group in enumerate(groups):
        content = b"".join(record(example(episodes[i])) for i in group)
        (folder / f"{NAME}-train.tfrecord-{number:05d}-of-{files:05d}").write_bytes(content)
    split = {
        "name": "train",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "shardLengths": [str(len(group)) for group in groups],
    }
    info = {"name": NAME, "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(json.dumps(FEATURES))
    return folder


def write_recorded(folder: Path, episodes: Sequence[Recorded], files: int = 2) -> Path:
    """Write episodes as `write_rlds` does, with the frames of their first camera."""
    parts = [
        {"image": next(iter(e.frames.values())), "action": e.action, "state": e.state, "text": e.task}
        for e in episodes
    ]
    return write_rlds(folder, parts, files)


def write_records(
    folder: Path, features: dict[str, dict[str, Any]], episodes: list[dict[str, Any]], name: str = NAME
) -> Path:
    """Write a data set of any features.

    Args:
        folder: Made.
        features: Path (`steps/action`) -> its description in `features.json`.
        episodes: Path -> values of all steps: floats as an array, texts, pictures and packed numbers as
            bytes, integers as a list.
        name: Of the data set.
    """
    folder.mkdir(parents=True)
    nested: dict[str, Any] = {}
    for path, feature in features.items():
        *parents, last = path.split("/")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = (feature,)
    steps = {"pythonClassName": "Dataset", "sequence": {"feature": _described(nested.pop("steps"))}}
    (folder / "features.json").write_text(json.dumps(_dict(steps=steps, **_described_members(nested))))
    contents = [_message({path: _values(values) for path, values in each.items()}) for each in episodes]
    (folder / f"{name}-train.tfrecord-00000-of-00001").write_bytes(b"".join(map(record, contents)))
    split = {"name": "train", "shardLengths": [str(len(episodes))]}
    info = {"name": name, "version": "1.0.0", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def _described(node: dict[str, Any] | tuple[dict[str, Any]]) -> dict[str, Any]:
    """A feature (in a tuple) as it is, or a dictionary of them."""
    return node[0] if isinstance(node, tuple) else _dict(**_described_members(node))


def _described_members(node: dict[str, Any]) -> dict[str, Any]:
    return {name: _described(member) for name, member in node.items()}


def _tensor(width: int, dtype: str = "float32") -> dict[str, Any]:
    return {"tensor": {"shape": {"dimensions": [str(width)]}, "dtype": dtype, "encoding": "none"}}


def _dict(**members: Any) -> dict[str, Any]:
    return {"pythonClassName": "FeaturesDict", "featuresDict": {"features": members}}


FEATURES = _dict(
    steps={
        "pythonClassName": "Dataset",
        "sequence": {
            "feature": _dict(
                action=_tensor(7),
                is_first={"tensor": {"shape": {}, "dtype": "bool", "encoding": "none"}},
                language_instruction={"text": {}},
                observation=_dict(
                    image={"image": {"shape": {"dimensions": ["32", "32", "3"]}, "encodingFormat": "png"}},
                    state=_tensor(8),
                    gripper=_tensor(1, "int64"),
                ),
            )
        },
    },
    episode_metadata=_dict(file_path={"text": {}}),
)


def episode(steps: int, seed: int, text: str = "Lift the cube") -> dict[str, Any]:
    """Random frames, actions and states, for `write_rlds`."""
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (steps, 32, 32, 3), dtype=np.uint8),
        "action": random.normal(size=(steps, 7)).astype(np.float32),
        "state": random.normal(size=(steps, 8)).astype(np.float32),
        "text": text,
    }


def tensor(*dimensions: int, dtype: str = "float32") -> dict[str, Any]:
    """A feature of numbers in `features.json`."""
    shape = {"dimensions": [str(side) for side in dimensions]} if dimensions else {}
    return {"tensor": {"shape": shape, "dtype": dtype, "encoding": "none"}}


def with_features(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Change the features of a step, and those of an episode, in `features.json`."""
    path = folder / "features.json"
    features = json.loads(path.read_text())
    top = features["featuresDict"]["features"]
    step = top["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    change(step, top["episode_metadata"]["featuresDict"]["features"])
    path.write_text(json.dumps(features))


def example(episode: dict[str, Any]) -> bytes:
    """A serialised tf.train.Example."""
    steps = len(episode["action"])
    features = {
        "steps/action": _floats(episode["action"]),
        "steps/observation/state": _floats(episode["state"]),
        "steps/observation/gripper": _integers([0] * steps),
        "steps/is_first": _integers([1] + [0] * (steps - 1)),
        "steps/observation/image": _bytes([png(frame) for frame in episode["image"]]),
        "steps/language_instruction": _bytes(
            [text.encode() for text in episode.get("texts", [episode["text"]] * steps)]
        ),
        "episode_metadata/file_path": _bytes([b"somewhere"]),
    }
    if "features" in episode:
        del features["steps/action"]
    for name, values in episode.get("features", {}).items():
        features[name] = _values(values)
    return _message(features)


def _message(features: dict[str, bytes]) -> bytes:
    entries = [_field(1, _field(1, name.encode()) + _field(2, value)) for name, value in features.items()]
    return _field(1, b"".join(entries))


def record(content: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(content))
    checksums = [struct.pack("<I", masked_checksum(part)) for part in (length, content)]
    return length + checksums[0] + content + checksums[1]


def png(frame: np.ndarray) -> bytes:
    """A PNG file."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _bytes(values: list[bytes]) -> bytes:
    return _field(1, b"".join(_field(1, value) for value in values))


def _floats(values: np.ndarray) -> bytes:
    return _field(2, _field(1, np.asarray(values, "<f4").tobytes()))


def _values(values: Any) -> bytes:
    if isinstance(values, np.ndarray):
        return _floats(values)
    return _bytes(values) if isinstance(values[0], bytes) else _integers([int(value) for value in values])


def _integers(values: list[int]) -> bytes:
    return _field(3, _field(1, b"".join(_varint(value) for value in values)))
