"""Windows read from the cache of a node: the same batches and errors as from whole episodes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.config import CacheConfig, DataConfig, MixtureSource
from data.contracts import PackedBatch
from data.errors import InputError
from data.storage.episode_cache import EpisodeCache
from data.storage.index import DatasetIndex
from data.stream.episodes import cached_windows, episode_memory, unit_reader
from data.stream.loader import TokenStream
from pretrain.config import TrainerConfig
from tests.support.shards_case import write_dataset

COUNT, STEPS = 12, 6
TRAINER = TrainerConfig(global_batch=8, sequence_length=1024)
FIELDS = ("tokens", "labels", "positions", "segments", "blocks", "action_starts", "action_targets")


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    write_dataset(tmp_path / "shards", count=COUNT, limit=20_000)
    return DataConfig(str(tmp_path / "shards"), chunk=2)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for one episode, and for a few time steps at a time."""
    monkeypatch.setattr(episode_memory, "MEGABYTE", 1)
    monkeypatch.setattr(cached_windows, "_ROWS", 9)


def cached(config: DataConfig, folder: Path, **changes: object) -> DataConfig:
    return replace(config, cache=CacheConfig(str(folder / "cache"), "1GB"), **changes)


def batches(config: DataConfig, steps: int = STEPS) -> Iterator[PackedBatch]:
    with TokenStream(config, TRAINER, seed=0) as stream:
        for step in range(steps):
            yield from stream.micro_batches(step, 0, 1)


def check(config: DataConfig, expected: list[PackedBatch]) -> None:
    for batch, reference in zip(batches(config), expected, strict=True):
        for field in FIELDS:
            assert np.array_equal(getattr(batch, field), getattr(reference, field)), field


def remove_shards(config: DataConfig) -> None:
    for path in Path(config.url).glob("*.tar"):
        path.unlink()


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize(
    ("cameras", "history", "chunk", "predicted"),
    [(["agent"], 1, 1, 1), (["wrist", "agent"], 2, 3, 1), (["wrist"], 3, 1, 3)],
)
@pytest.mark.usefixtures("little_memory")
def test_cached_windows_give_the_same_batches(
    config: DataConfig,
    tmp_path: Path,
    cameras: list[str],
    history: int,
    chunk: int,
    predicted: int,
    state: bool,
) -> None:
    config = replace(
        config, cameras=cameras, history=history, chunk=chunk, predicted_frames=predicted, state=state
    )
    expected = list(batches(replace(config, memory_megabytes=1 << 20)))
    check(cached(config, tmp_path), expected)  # stored on the way
    remove_shards(config)
    check(cached(config, tmp_path), expected)  # all in the cache


@pytest.mark.usefixtures("little_memory")
def test_no_whole_episode_is_read_once_all_are_cached(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(batches(config))
    check(cached(config, tmp_path), expected)

    def never(*_: object) -> None:
        raise AssertionError("read whole")

    reads: list[str] = []
    original = EpisodeCache.read_into
    monkeypatch.setattr(unit_reader, "read_episodes", never)
    monkeypatch.setattr(cached_windows, "_ROWS", 4096)
    monkeypatch.setattr(
        EpisodeCache,
        "read_into",
        lambda cache, name, parts: reads.append(name) or original(cache, name, parts),
    )
    check(cached(config, tmp_path), expected)
    assert len(set(reads)) == COUNT - 1
    assert len(reads) <= (STEPS + 1) * (COUNT - 1)  # in a step each file is opened once
    with pytest.raises(AssertionError, match="read whole"):
        check(config, expected)


@pytest.mark.usefixtures("little_memory")
def test_several_data_sets_share_a_cache(config: DataConfig, tmp_path: Path) -> None:
    write_dataset(tmp_path / "other", count=COUNT - 2, compression="zstd")
    sources = [MixtureSource(config.url, 1.0), MixtureSource(str(tmp_path / "other"), 2.0)]
    config = replace(config, url="", sources=sources)
    expected = list(batches(config))
    for _ in range(2):
        check(cached(config, tmp_path), expected)


@pytest.mark.usefixtures("little_memory")
def test_damaged_cache_files_are_fetched_again(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(batches(config))
    check(cached(config, tmp_path), expected)
    monkeypatch.undo()
    monkeypatch.setattr(episode_memory, "MEGABYTE", 1)  # good and damaged ones are read together
    for number, path in enumerate(sorted((tmp_path / "cache").glob("??/*"))):
        content = bytearray(path.read_bytes())
        if number % 4 == 0:
            path.unlink()
        elif number % 4 == 1:
            path.write_bytes(content[: len(content) // 2])
        elif number % 4 == 2:
            for at in range(33, len(content), 100):
                content[at] ^= 0xFF  # includes codes outside of the vocabulary
            path.write_bytes(content)
    check(cached(config, tmp_path), expected)
    check(config, expected)


@pytest.mark.usefixtures("little_memory")
def test_a_bad_shard_is_named_and_skipped_as_without_a_cache(
    config: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = DatasetIndex.load(config.url).split("train")[4]
    shard = Path(config.url) / entry.shard
    content = bytearray(shard.read_bytes())
    content[entry.offset + 700] ^= 1
    shard.write_bytes(content)
    expected = list(batches(replace(config, skip_bad_episodes=1)))
    assert entry.key in caplog.text
    for _ in range(2):
        check(cached(config, tmp_path, skip_bad_episodes=1), expected)
        assert f"episode {entry.key}, offset {entry.offset}: sha256" in caplog.text
        with pytest.raises(InputError, match=rf"shard {entry.shard}, episode {entry.key}, offset"):
            check(cached(config, tmp_path), expected)


@pytest.mark.usefixtures("little_memory")
def test_a_small_or_failing_cache_does_not_change_batches(config: DataConfig, tmp_path: Path) -> None:
    expected = list(batches(config))
    small = cached(config, tmp_path)
    for size in ("0.02MB", "0.0001MB"):
        check(replace(small, cache=replace(small.cache, size=size)), expected)
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("??/*")) <= 20_000
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / ".writing").symlink_to("/dev/full")
    check(small, expected)
