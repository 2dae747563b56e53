"""Parts of episodes in the cache of a node: valid time steps of a checked episode, or nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.storage.cached_episodes import CachedEpisodes, codes_field
from data.storage.episode_cache import EpisodeCache
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.storage.shards import encode_episode
from tests.support.shards_case import episode, equal, write_dataset

COUNT = 4


@pytest.fixture
def index(tmp_path: Path) -> DatasetIndex:
    write_dataset(tmp_path / "shards", count=COUNT)
    return DatasetIndex.load(str(tmp_path / "shards"), cache=EpisodeCache(tmp_path / "cache", 10**9))


def cached(index: DatasetIndex) -> CachedEpisodes:
    assert index.cached_episodes is not None
    return index.cached_episodes


def store(index: DatasetIndex, number: int) -> Path:
    """Read an episode, so that it is stored; return its file."""
    before = set(Path(index.url).parent.glob("cache/??/*"))
    read_episode(index, index.episodes[number])
    (path,) = set(Path(index.url).parent.glob("cache/??/*")) - before
    return path


def rows_of(index: DatasetIndex, number: int, *parts: tuple[int, int]) -> list[np.ndarray] | None:
    """Time steps [begin, end) of an episode; None: not in the cache."""
    episodes = cached(index)
    rows = [np.zeros(end - begin, episodes.row) for begin, end in parts]
    views = [part.view(np.uint8).data for part in rows]
    requested = [(begin, view) for (begin, _), view in zip(parts, views, strict=True)]
    return rows if episodes.read(index.episodes.digest(number), requested) else None


def test_parts_are_those_of_the_episode(index: DatasetIndex) -> None:
    for number in range(COUNT):
        store(index, number)
        whole, length = episode(number, steps=4 + number), 4 + number
        parts = [(0, 1), (length - 1, length), (1, 4), (0, length)]
        found = rows_of(index, number, *parts)
        assert found is not None
        for (begin, end), rows in zip(parts, found, strict=True):
            assert np.array_equal(rows["actions"], whole.actions[begin:end])
            assert np.array_equal(rows["states"], whole.states[begin:end])
            for camera, codes in whole.codes.items():
                assert np.array_equal(rows[codes_field(camera)], codes[begin:end])


def test_what_is_not_in_the_cache_is_not_read(index: DatasetIndex) -> None:
    store(index, 0)
    assert rows_of(index, 1, (0, 1)) is None
    assert rows_of(index, 0, (3, 5)) is None  # of four steps


def test_old_content_of_the_memory_does_not_replace_missing_rows(index: DatasetIndex) -> None:
    path, episodes = store(index, 2), cached(index)
    found = rows_of(index, 2, (5, 6))
    assert found is not None
    path.write_bytes(path.read_bytes()[: 32 + 5 * episodes.row.itemsize])
    assert not episodes.read(index.episodes.digest(2), [(5, found[0].view(np.uint8).data)])


def test_a_part_counts_as_a_use(index: DatasetIndex) -> None:
    path = store(index, 0)
    os.utime(path, ns=(1, 1))
    assert rows_of(index, 0, (0, 1)) is not None
    assert path.stat().st_mtime_ns > 1


@pytest.mark.parametrize("damage", ["flipped", "of another step", "cut"])
def test_a_damaged_part_is_refused_and_fetched_again(index: DatasetIndex, damage: str) -> None:
    path, width = store(index, 2), cached(index).row.itemsize
    whole = path.read_bytes()
    row, other = 32 + 3 * width, 32 + 2 * width
    path.write_bytes(
        {
            "flipped": whole[: row + 9] + bytes([whole[row + 9] ^ 4]) + whole[row + 10 :],
            "of another step": whole[:row] + whole[other : other + width] + whole[row + width :],
            "cut": whole[: row + width - 1],
        }[damage]
    )
    assert rows_of(index, 2, (0, 3)) is not None  # the other rows are valid
    assert rows_of(index, 2, (2, 4)) is None
    assert equal(read_episode(index, index.episodes[2]), episode(2, steps=6))
    assert path.read_bytes() == whole
    assert rows_of(index, 2, (2, 4)) is not None


def test_file_names_depend_on_what_was_checked(index: DatasetIndex) -> None:
    """An index that describes the same bytes differently does not get them unchecked."""
    store(index, 0)
    others = [
        dataclasses.replace(index, image=dataclasses.replace(index.image, codebook_size=2)),
        dataclasses.replace(index, image=dataclasses.replace(index.image, rows=16, columns=4)),
        dataclasses.replace(index, cameras=("agent",)),
    ]
    for other in others:
        assert rows_of(other, 0, (0, 1)) is None
        with pytest.raises(InputError, match="the index says"):
            read_episode(other, index.episodes[0])
    same = dataclasses.replace(index, image=dataclasses.replace(index.image, tokenizer_sha256="1" * 64))
    assert rows_of(same, 0, (0, 1)) is not None
    with pytest.raises(InputError, match="the index says 99 steps"):
        read_episode(index, dataclasses.replace(index.episodes[0], length=99))


@pytest.mark.parametrize("field", ["actions", "states"])
def test_nan_is_refused_and_not_stored(index: DatasetIndex, tmp_path: Path, field: str) -> None:
    broken = episode(1, steps=5)
    getattr(broken, field)[3, 2] = np.nan
    content = encode_episode(broken)
    (tmp_path / "shards" / "broken.tar").write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    entry = dataclasses.replace(
        index.episodes[1], shard="broken.tar", offset=0, size=len(content), sha256=sha256
    )
    with pytest.raises(InputError, match=f"shard broken.tar, .* {field} hold values that are no numbers"):
        read_episode(index, entry)
    assert not list((tmp_path / "cache").glob("??/*"))


def test_a_failing_cache_is_reported_once(index: DatasetIndex, caplog: pytest.LogCaptureFixture) -> None:
    path = store(index, 0)
    path.unlink()
    path.symlink_to(path)
    for _ in range(2):
        assert rows_of(index, 0, (0, 1)) is None
    (line,) = caplog.messages
    assert "this process continues without storing episodes there" in line
