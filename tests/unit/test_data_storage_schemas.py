"""Data sets of earlier versions: read with the codes that they always gave, never mixed with newer states."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from data.config import DataConfig, MixtureSource, PrepareConfig
from data.contracts import Episode
from data.errors import InputError
from data.prepare.preparer import Preparer, prepare
from data.storage.episode_cache import EpisodeCache
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_reader import read_episode
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex
from data.storage.shards import Location, decode_episode, encode_episode
from data.storage.ustar import read_members, write_member
from data.stream.datasets import open_datasets
from data.tokens.action import encode
from tests.support.libero_layout import demonstration, write_file
from tests.support.shards_case import episode, write_dataset

EDGE = -0.225  # of a bin in dimension 4: id 10056; rounded to float32 it is in the next one
STEPS = 4


def on_the_edge(number: int) -> Episode:
    made = episode(number, STEPS)
    made.actions[:, 4] = EDGE
    return made


def old_members(made: Episode) -> bytes:
    """The members of an episode as earlier versions wrote them, its actions in float32."""
    parts: list[Any] = []
    for name, payload in read_members(encode_episode(made)):
        if name.endswith("actions.npy"):
            file = io.BytesIO()
            np.lib.format.write_array(file, made.actions.astype("<f4"), version=(1, 0))
            payload = memoryview(file.getvalue())
        parts += write_member(name, payload)
    return b"".join(parts)


def write_old(folder: Path, schema: int = 2) -> str:
    """A data set of one episode with the index of an earlier version."""
    index = write_dataset(folder, count=1)
    made = on_the_edge(0)
    content = old_members(made)
    (folder / "old.tar").write_bytes(content)
    location = Location("old.tar", 0, len(content), hashlib.sha256(content).hexdigest())
    entries = EpisodeTable.of([EpisodeEntry.of(made, location, "train")])
    dataclasses.replace(index, episodes=entries, schema=schema).save(str(folder))
    return str(folder)


@pytest.mark.parametrize("schema", [2, 3])
def test_an_old_index_is_read_as_it_was(schema: int, tmp_path: Path) -> None:
    index = DatasetIndex.load(write_old(tmp_path, schema))
    stored = json.loads((tmp_path / "index.json").read_text())
    assert stored["schema"] == schema
    assert ("compression" in stored) == (schema == 3)
    assert not {"split_order", "resize"} & stored.keys()
    assert (index.split_order, index.resize, index.has_hand_states) == ("number", "lanczos", False)
    assert index.fingerprint == stored["fingerprint"]


@pytest.mark.parametrize("cached", [False, True])
def test_old_actions_keep_their_codes_and_new_ones_have_those_of_the_file(
    cached: bool, tmp_path: Path
) -> None:
    cache = EpisodeCache(tmp_path / "cache", 10**9) if cached else None
    old = DatasetIndex.load(write_old(tmp_path / "old"), cache=cache)
    for _ in range(2):  # the second time from the cache
        actions = read_episode(old, old.episodes[0]).actions
        assert actions.dtype == np.float64
        assert set(actions[:, 4]) == {float(np.float32(EDGE))}
        assert set(encode(actions)[:, 4]) == {10_057}
    new = decode_episode(encode_episode(on_the_edge(0)))
    assert set(encode(new.actions)[:, 4]) == {10_056}


def test_a_new_index_names_its_conventions(tmp_path: Path) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "index.json"
    stored = json.loads(path.read_text())
    assert [stored[name] for name in ("schema", "compression", "split_order", "resize")] == [
        4,
        "none",
        "number",
        "box_bicubic",
    ]
    for name, value in (("split_order", "size"), ("resize", "nearest")):
        path.write_text(json.dumps(stored | {name: value}))
        with pytest.raises(InputError, match=f"{name} is '{value}', expected one of"):
            DatasetIndex.load(str(tmp_path))


def test_old_and_new_states_are_not_mixed(tmp_path: Path) -> None:
    write_dataset(tmp_path / "new")
    new, old = str(tmp_path / "new"), write_old(tmp_path / "old")
    for urls in ([new, old], [old, new]):
        mixed = DataConfig(sources=[MixtureSource(url) for url in urls])
        with pytest.raises(
            InputError, match=rf"{old}: prepared by an earlier version.*against those of {new}"
        ):
            open_datasets(mixed)
    assert len(open_datasets(DataConfig(sources=[MixtureSource(old), MixtureSource(old)]))) == 2


def test_states_of_an_old_data_set_are_not_used(tmp_path: Path) -> None:
    write_dataset(tmp_path / "new")
    new, old = str(tmp_path / "new"), write_old(tmp_path / "old")
    assert open_datasets(DataConfig(old))
    assert open_datasets(DataConfig(new, state=True))
    with pytest.raises(
        InputError, match=r"turned by 90 degrees; prepare it again .*, or set data.state=false"
    ):
        open_datasets(DataConfig(old, state=True))


def test_a_data_set_of_an_earlier_version_is_refused_before_anything_is_encoded(tmp_path: Path) -> None:
    old = write_old(tmp_path / "old")
    before = sorted(path.name for path in (tmp_path / "old").rglob("*"))
    write_file(tmp_path / "demos" / "lift_demo.hdf5", [demonstration()])
    image: Any = SimpleNamespace(pixels=64, rows=8, columns=8, codebook_size=512, sha256="0")
    preparer = Preparer(PrepareConfig(source=str(tmp_path / "demos"), out=old), image)
    with pytest.raises(InputError, match=r"of another version \(schema 2, now 5\); choose another out="):
        prepare(preparer)  # the tokenizer encodes nothing: it cannot
    assert sorted(path.name for path in (tmp_path / "old").rglob("*")) == before
