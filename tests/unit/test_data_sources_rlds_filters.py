"""What recipes say of RLDS data sets: packed features, filters, ranges of steps, what is drawn."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.config import SourceConfig
from data.contracts import Demonstration
from data.errors import InputError
from data.recipe_settings import KeepRangesConfig, Operation, Part, SuccessConfig
from data.sources.registry import open_source, read_demonstrations
from data.sources.rlds.features import Feature
from data.sources.rlds.tfrecord import Example
from data.storage.shards import check_key
from tests.support.rlds_layout import episode, example, png, tensor, with_features, write_rlds


def read(folder: Path, **settings: Any) -> list[Demonstration]:
    return list(read_demonstrations(SourceConfig(str(folder), **settings)))


def test_packed_ragged_and_nested_features_are_parts(tmp_path: Path) -> None:
    item = episode(3, 0)
    packed = np.arange(6, dtype="<f4").reshape(3, 2)
    item["features"] = {
        "steps/action": item["action"],
        "steps/observation/packed": [zlib.compress(row.tobytes()) for row in packed],
        "steps/observation/bytes": [row.tobytes() for row in packed],
        "steps/observation/matrix": np.arange(12, dtype=np.float32),
        "steps/observation/list": np.arange(6, dtype=np.float32),
        "steps/observation/ragged/ragged_flat_values": np.array([1, 2, 3, 4, 5, 6], np.float32),
        "steps/observation/ragged/ragged_row_lengths_0": [2, 1, 3],
    }
    folder = write_rlds(tmp_path / "set", [item], files=1)

    def change(step: dict[str, Any], _: dict[str, Any]) -> None:
        def encoded(packing: str) -> dict[str, Any]:
            return {"tensor": tensor(2)["tensor"] | {"encoding": packing}}

        step["observation"]["featuresDict"]["features"] |= {
            "packed": encoded("zlib"),
            "bytes": encoded("bytes"),
            "matrix": tensor(2, 2),
            "list": {"sequence": {"feature": tensor(), "length": "2"}},
            "ragged": {"sequence": {"feature": tensor(), "length": "-1"}},
        }

    with_features(folder, change)
    names = ["packed", "bytes", "matrix", "list"]
    state: list[Any] = [f"observation/{name}" for name in names]
    state.append(Part("observation/ragged", [Operation("select", columns=[0])], ["first"]))
    (found,) = read(folder, state=state)
    expected = [packed, packed, np.arange(12).reshape(3, 4), np.arange(6).reshape(3, 2), [[1], [3], [4]]]
    assert np.array_equal(found.states, np.concatenate(expected, axis=1))
    state[-1] = Part("observation/ragged", [Operation("select", columns=[1])], ["second"])
    with pytest.raises(InputError, match=r"\[1, 10\] is nan, expected a finite number"):
        read(folder, state=state)


@pytest.mark.parametrize("content", [b"no zlib", zlib.compress(bytes(7)), zlib.compress(bytes(1 << 20))])
def test_packed_numbers_that_are_none_are_refused(tmp_path: Path, content: bytes) -> None:
    item = episode(1, 0)
    item["features"] = {"steps/action": item["action"], "steps/observation/packed": [content]}
    folder = write_rlds(tmp_path / "set", [item], files=1)
    encoded = {"tensor": tensor(2)["tensor"] | {"encoding": "zlib"}}
    with_features(folder, lambda s, _: s["observation"]["featuresDict"]["features"].update(packed=encoded))
    with pytest.raises(InputError, match="packed of step 0 is not 2 packed numbers"):
        read(folder, state=["observation/packed"])


def test_packed_numbers_are_not_unpacked_beyond_their_size() -> None:
    feature = Feature("steps/packed", "numbers", 2, "zlib")
    item = {"action": np.zeros((1, 7)), "state": np.zeros((1, 8)), "image": np.zeros((1, 8, 8, 3), np.uint8)}
    item |= {"text": "x", "features": {"steps/packed": [zlib.compress(bytes(100_000_000))]}}
    content = Example(example(item), "here")
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="not 2 packed numbers"):
            feature.numbers(content, "here")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def labelled(folder: Path, count: int = 4) -> Path:
    """Episodes with three texts (of which some are empty), a path that tells success, and a success flag."""
    written: list[dict[str, Any]] = []
    for number in range(count):
        item = episode(6, number)
        item["action"][0] = 0
        item["features"] = {
            "steps/action": item["action"],
            "steps/language_instruction": [b"" if number == 1 else b"open it"] * 6,
            "steps/language_instruction_2": [b"" if number in (1, 2) else b"pull the drawer"] * 6,
            "steps/done": [0, 0, 0, 0, 0, int(number != 3)],
            "episode_metadata/file_path": [
                f"/data/{'failure' if number == 0 else 'success'}/{number}".encode()
            ],
        }
        written.append(item)
    write_rlds(folder, written, files=1)
    with_features(
        folder, lambda s, _: s.update(language_instruction_2={"text": {}}, done=tensor(dtype="bool"))
    )
    return folder


BOTH = ["language_instruction", "language_instruction_2"]


def test_unlabelled_and_unsuccessful_episodes_are_left_out_on_request(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set")

    def keys(**settings: Any) -> list[str]:
        return [d.key.removeprefix("train/episode_00000") for d in read(folder, **settings)]

    with pytest.raises(InputError, match="the instruction is empty"):
        keys()
    assert keys(drop_unlabeled=True) == ["0", "2", "3"]
    by_path = SuccessConfig("episode_metadata/file_path", "/success/")
    assert keys(drop_unlabeled=True, successful=by_path) == ["2", "3"]
    assert keys(drop_unlabeled=True, successful=SuccessConfig("done")) == ["0", "2"]
    with pytest.raises(InputError, match=r"file_path is a text; add successful\.contains=WORD"):
        keys(successful=SuccessConfig("episode_metadata/file_path"))
    with pytest.raises(InputError, match=r"no dne among .*; name .* with successful\.feature=NAME"):
        keys(successful=SuccessConfig("dne"))
    with pytest.raises(InputError, match=r"leave out all 4 episodes \(without success\)"):
        keys(successful=SuccessConfig("episode_metadata/file_path", "sucess"))


def test_one_of_several_instructions_is_drawn_by_seed_and_key(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set", count=12)

    def texts(**settings: Any) -> list[str]:
        found = read(folder, drop_unlabeled=True, instruction=BOTH, **settings)
        return [demonstration.instruction for demonstration in found]

    assert texts(several_instructions="first") == ["open it"] * 11
    assert set(texts(several_instructions="last")) == {"pull the drawer", "open it"}
    drawn = texts(several_instructions="draw")
    assert drawn == texts(several_instructions="draw")
    assert set(drawn) == {"pull the drawer", "open it"}
    assert drawn != texts(several_instructions="draw", draw_seed=1)
    assert drawn[1] == "open it", "an empty one is not drawn"
    with pytest.raises(InputError, match="2 different instructions"):
        texts()


def test_the_first_step_is_left_out_where_it_is_zero(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set")
    whole = read(folder, drop_unlabeled=True)[0]
    found = read(folder, drop_unlabeled=True, drop_first="zero")[0]
    assert found.key == whole.key
    assert np.array_equal(found.actions, whole.actions[1:])
    assert np.array_equal(found.states, whole.states[1:])
    assert np.array_equal(found.frames["agent"], whole.frames["agent"][1:])
    other = write_rlds(tmp_path / "other", [episode(4, 0)], files=1)
    assert len(read(other, drop_first="zero")[0].actions) == 4
    assert len(read(other, drop_first="always")[0].actions) == 3
    short = write_rlds(tmp_path / "short", [episode(1, 0)], files=1)
    with pytest.raises(InputError, match="nothing is left without its first step"):
        read(short, drop_first="always")


def test_ranges_of_steps_become_episodes_of_their_own(tmp_path: Path) -> None:
    folder = labelled(tmp_path / "set")
    file = tmp_path / "ranges.json"
    file.write_text(json.dumps({"/data/failure/0": [[0, 2], [3, 6]], "/data/success/3": [[1, 3]]}))
    ranges = KeepRangesConfig(str(file), ["episode_metadata/file_path"])
    whole = {d.key: d for d in read(folder, drop_unlabeled=True)}
    settings: dict[str, Any] = {"drop_unlabeled": True, "keep_ranges": ranges}
    found = read(folder, **settings)
    assert [d.key for d in found] == [
        "train/episode_000000_steps_0-2",
        "train/episode_000000_steps_3-6",
        "train/episode_000003_steps_1-3",
    ]
    references = open_source(SourceConfig(str(folder), **settings)).references()
    assert [r.length for r in references] == [2, 3, 2]
    assert all(check_key(r.key) for r in references)
    for demonstration, (key, begin, end) in zip(found, [("0", 0, 2), ("0", 3, 6), ("3", 1, 3)], strict=True):
        other = whole[f"train/episode_00000{key}"]
        assert np.array_equal(demonstration.actions, other.actions[begin:end])
        assert np.array_equal(demonstration.frames["agent"], other.frames["agent"][begin:end])
    first = read(folder, drop_first="always", **settings)
    assert first[0].key == "train/episode_000000_steps_1-2"
    file.write_text(json.dumps({"train/episode_000002": [[2, 5]], "train/episode_000003": []}))
    (found,) = read(folder, drop_unlabeled=True, keep_ranges=KeepRangesConfig(str(file)))
    assert found.key == "train/episode_000002_steps_2-5"


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([[0, 7]], "keep_ranges names the steps 0-7 of an episode of 6"),
        ([[2, 2]], "has the range .2, 2.; expected episodes with lists"),
        ([[3, 5], [4, 6]], "has the range .4, 6.;"),
        ([[-1, 2]], "has the range"),
        ([[0.5, 2]], "has the range"),
        ([3], "has the range 3"),
        (None, "has the range None"),
    ],
)
def test_ranges_that_are_none_are_refused(tmp_path: Path, ranges: Any, message: str) -> None:
    folder = write_rlds(tmp_path / "set", [episode(6, 0)], files=1)
    (tmp_path / "ranges.json").write_text(json.dumps({"train/episode_000000": ranges}))
    with pytest.raises(InputError, match=message):
        read(folder, keep_ranges=KeepRangesConfig(str(tmp_path / "ranges.json")))


def test_the_agents_camera_is_drawn_of_several(tmp_path: Path) -> None:
    written = [episode(2, seed) for seed in range(8)]
    others = np.random.default_rng(9).integers(0, 256, (8, 2, 32, 32, 3), dtype=np.uint8)
    for item, frames in zip(written, others, strict=True):
        item["features"] = {
            "steps/action": item["action"],
            "steps/observation/right": [png(f) for f in frames],
        }
    folder = write_rlds(tmp_path / "set", written, files=1)
    picture = {"image": {"shape": {"dimensions": ["32", "32", "3"]}, "encodingFormat": "png"}}
    with_features(folder, lambda s, _: s["observation"]["featuresDict"]["features"].update(right=picture))
    settings: dict[str, Any] = {"draw_camera": ["observation/image", "observation/right"]}
    found = read(folder, **settings)
    right = [np.array_equal(d.frames["agent"], frames) for d, frames in zip(found, others, strict=True)]
    for demonstration, item, is_right in zip(found, written, right, strict=True):
        assert is_right or np.array_equal(demonstration.frames["agent"], item["image"])
    assert 0 < sum(right) < 8
    with pytest.raises(InputError, match="no camera 'observation/left'"):
        read(folder, draw_camera=["observation/left"])
