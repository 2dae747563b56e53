"""Actions and states of any robot: their widths through shards, index, cache and statistics."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.contracts import DEFAULT_EMBODIMENT, Embodiment
from data.errors import InputError
from data.storage.episode_cache import open_cache
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.tokens.action import ActionRanges, decode, encode
from data.tokens.state import state_blocks
from tests.support.shards_case import episode, equal, write_dataset

_ALOHA = Embodiment("aloha", tuple(f"joint_{i}" for i in range(14)), tuple(f"q_{i}" for i in range(14)))
_BARE = Embodiment("bare", ("x",), ())
_WIDEST = Embodiment("widest", tuple(f"a{i}" for i in range(32)), tuple(f"s{i}" for i in range(64)))


@pytest.mark.parametrize("robot", [_ALOHA, _BARE, _WIDEST], ids=lambda robot: robot.name)
@pytest.mark.parametrize("variants", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_episodes_of_any_width_come_back_as_they_were(
    tmp_path: Path, robot: Embodiment, variants: int, cached: bool
) -> None:
    index = write_dataset(tmp_path / "data", compression="zstd", robot=robot, variants=variants)
    assert (index.embodiment, index.variants) == (robot, variants)
    assert json.loads((tmp_path / "data" / "index.json").read_bytes())["schema"] == 5
    cache = open_cache(str(tmp_path / "cache"), "1GB") if cached else None
    index = DatasetIndex.load(index.url, cache=cache)
    for _ in range(1 + cached):
        for number in range(3):
            written = episode(number, 4 + number, robot, variants)
            assert equal(read_episode(index, index.episodes[number]), written)
    assert len(index.statistics["states"].mean) == robot.state_dim


def test_a_data_set_like_liberos_keeps_its_file(tmp_path: Path) -> None:
    index = write_dataset(tmp_path)
    content = json.loads((tmp_path / "index.json").read_bytes())
    assert content["schema"] == 4
    assert not {"embodiment", "variants", "state_ranges", "weight", "recipe"} & content.keys()
    other = replace(index, variants=1)
    assert json.loads(other.to_json())["schema"] == 5
    assert other.fingerprint != index.fingerprint


def test_episodes_that_are_not_as_the_index_says_are_refused(tmp_path: Path) -> None:
    index = write_dataset(tmp_path, robot=_ALOHA, variants=1)
    for changed, message in (
        (replace(index, variants=0), "1 variants, the index says 0"),
        (replace(index, embodiment=_WIDEST), "actions of 14 numbers, the index says 32"),
    ):
        with pytest.raises(InputError, match=message):
            read_episode(replace(changed, url=index.url), index.episodes[0])


def test_an_index_with_an_impossible_embodiment_is_refused_with_its_place(tmp_path: Path) -> None:
    write_dataset(tmp_path, robot=_ALOHA)
    path = tmp_path / "index.json"
    content = json.loads(path.read_bytes())
    for change, message in (
        ({"missing": ["wings"]}, "index.json: embodiment: .*wings"),
        ({"control_hz": 0}, "index.json: embodiment: .*control_hz.*above 0"),
        ({"action": ["x"]}, "action_ranges of 14 numbers, its embodiment aloha has 1"),
    ):
        path.write_text(json.dumps(content | {"embodiment": content["embodiment"] | change}))
        with pytest.raises(InputError, match=message):
            DatasetIndex.load(str(tmp_path))


@pytest.mark.parametrize(
    ("robot", "message"),
    [
        ({"action": ()}, "action of 0 numbers, expected 1 to 32"),
        ({"action": tuple(f"a{i}" for i in range(33))}, "action of 33 numbers"),
        ({"state": tuple(f"s{i}" for i in range(65))}, "state of 65 numbers, expected 0 to 64"),
        ({"action": ("x", "x")}, "expected each once"),
        ({"missing": ("wings",)}, "missing=\\['wings'\\]"),
        ({"action": ("x",), "missing": ("x",)}, "expected some, not all"),
    ],
)
def test_embodiments_that_cannot_be_are_refused(robot: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(DEFAULT_EMBODIMENT, **robot)


def test_actions_and_states_have_as_many_bins_as_numbers() -> None:
    ranges = ActionRanges((0.0, -1.0), (1.0, 3.0))
    ids = encode([[0.0, 3.0], [1.0, -1.0]], ranges)
    assert ids.tolist() == [[10006, 10260], [10260, 10006]]
    assert np.allclose(decode(ids, ranges), [[0.0, 3.0], [1.0, -1.0]], atol=4 / 255)
    with pytest.raises(InputError, match=r"expected \[N, 2\]"):
        encode([[0.0] * 7], ranges)
    assert state_blocks([[0.5] * 3], [0.0] * 3, [1.0] * 3).shape == (1, 5)
