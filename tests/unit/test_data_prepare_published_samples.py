"""Published samples to episodes; pickles of anything but lists of numbers are refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from numpy.typing import NDArray

from data.config import ConvertSamplesConfig
from data.errors import InputError
from data.prepare.published_samples import convert_samples
from data.sources.token_pickles import load_plain
from data.storage.episode_reader import read_episode
from data.storage.index import DatasetIndex
from data.tokens.action import encode
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT, action_text
from tests.support.reference_samples import Sample, action_sample, world_sample
from tests.support.tokenizers import shipped_text_tokenizer

CHUNK = 3
STATE = [15_504, *[15_506] * 8, 16_004]


@dataclass(frozen=True)
class Format:
    pixels: int = 64
    rows: int = 4
    columns: int = 4
    codebook_size: int = 1024
    sha256: str = "a" * 64


@dataclass(frozen=True)
class Recorded:
    instruction: str
    codes: NDArray[np.int64]
    ids: NDArray[np.int64]


def recorded(steps: int, seed: int, instruction: str) -> Recorded:
    random = np.random.default_rng(seed)
    actions = random.uniform(-0.3, 0.3, (steps, 7))
    return Recorded(instruction, random.integers(0, 1024, (steps, 4, 4)), encode(actions))


def write_sample(path: Path, sample: Sample, protocol: int = 4) -> None:
    tokens = sample.tokens.tolist()
    labels = [-100, *sample.labels.tolist()[:-1]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"token": tokens, "label": labels, "id": 7}, protocol))


def write_published(folder: Path, episodes: list[Recorded], protocol: int = 4) -> Path:
    text = shipped_text_tokenizer()
    world = np.array(text.encode(WORLD_TEXT), np.int32)
    number = 0
    for episode in episodes:
        blocks = image_block(episode.codes, 64)
        ids = text.encode(action_text(episode.instruction))
        for t in range(len(blocks)):
            number += 1
            if t + CHUNK <= len(blocks):
                sample = action_sample(ids, list(blocks[max(0, t - 1) : t + 1]), episode.ids[t : t + CHUNK])
                write_sample(folder / f"actions/{number}.pkl", sample, protocol)
            if t + 1 < len(blocks):
                sample = world_sample(world, blocks[t], episode.ids[t], blocks[t + 1])
                write_sample(folder / f"world/{number}.pkl", sample, protocol)
    return folder


def config(tmp_path: Path, **changes: Any) -> ConvertSamplesConfig:
    return ConvertSamplesConfig(
        **{
            "source": str(tmp_path / "tokens"),
            "out": str(tmp_path / "out"),
            "suite": "libero_goal",
            **changes,
        }
    )


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_codes_and_bins_are_restored_exactly(tmp_path: Path, protocol: int) -> None:
    episodes = [
        recorded(12, 0, "open the drawer"),
        recorded(9, 1, "lift it"),
        recorded(7, 2, "open the drawer"),
    ]
    write_published(tmp_path / "tokens", episodes, protocol)
    progress: list[tuple[int, int]] = []
    converted = convert_samples(
        config(tmp_path), shipped_text_tokenizer(), Format(), lambda *d: progress.append(d)
    )
    index = converted.index
    assert (converted.has_states, converted.repeated_states) == (False, 0)
    assert progress[-1] == (progress[-1][1], progress[-1][1])
    assert index == DatasetIndex.load(str(tmp_path / "out"))
    assert [e.key for e in index.episodes] == [
        "open_the_drawer/demo_0",
        "lift_it/demo_0",
        "open_the_drawer/demo_1",
    ]
    for entry, written in zip(index.episodes, episodes, strict=True):
        episode = read_episode(index, entry)
        assert episode.instruction == written.instruction
        assert np.array_equal(episode.codes["agent"], written.codes[:-1])
        assert np.array_equal(encode(episode.actions, index.action_ranges), written.ids[:-1])


def test_the_last_bin_is_kept(tmp_path: Path) -> None:
    """Id 10261 is that of values above the maximum; its middle is that of 10260."""
    episode = recorded(8, 0, "lift it")
    episode.ids[:, [0, 6]] = 10_261
    write_published(tmp_path / "tokens", [episode])
    index = convert_samples(config(tmp_path), shipped_text_tokenizer(), Format()).index
    actions = read_episode(index, index.episodes[0]).actions
    assert np.array_equal(encode(actions, index.action_ranges), episode.ids[:-1])


def test_shards_may_be_compressed(tmp_path: Path) -> None:
    write_published(tmp_path / "tokens", [recorded(80, 0, "open the drawer"), recorded(60, 1, "lift it")])
    indexes = [
        convert_samples(
            config(tmp_path, out=str(tmp_path / name), compression=name), shipped_text_tokenizer(), Format()
        ).index
        for name in ("none", "zstd")
    ]
    plain, small = (sum(entry.size for entry in index.episodes) for index in indexes)
    assert small < plain
    assert DatasetIndex.load(str(tmp_path / "zstd")).compression == "zstd"
    for one, other in zip(*(index.episodes for index in indexes), strict=True):
        read, expected = read_episode(indexes[1], other), read_episode(indexes[0], one)
        assert np.array_equal(read.codes["agent"], expected.codes["agent"])
        assert np.array_equal(read.actions, expected.actions)


def test_incompatible_samples_and_tokenizers_are_refused(tmp_path: Path) -> None:
    text, folder = shipped_text_tokenizer(), tmp_path / "tokens"
    with pytest.raises(InputError, match=r"no \*\.pkl file"):
        convert_samples(config(tmp_path), text, Format())
    write_published(folder, [recorded(6, 0, "lift it")])
    with pytest.raises(InputError, match=r"images of \(4, 4\) codes .*makes 8 x 8 below 1024"):
        convert_samples(config(tmp_path), text, Format(rows=8, columns=8))
    for path in (folder / "actions").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no action sample gives the instruction"):
        convert_samples(config(tmp_path), text, Format())
    write_published(folder, [recorded(6, 0, "lift it")])
    for path in (folder / "world").iterdir():
        if int(path.stem) % 2:
            path.unlink()
    with pytest.raises(InputError, match="expected world samples whose files are numbered"):
        convert_samples(config(tmp_path), text, Format())


class Harmful:
    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (1,)  # a test that executes this cannot pass


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"token": Harmful()}), "the pickle uses (STACK_GLOBAL|GLOBAL)"),
        (pickle.dumps({"token": Harmful()}, 0), "the pickle uses GLOBAL"),
        (pickle.dumps({"token": np.zeros(3)}), "the pickle uses"),
        (pickle.dumps({"token": (1, 2)}), "the pickle uses TUPLE2"),
        (pickle.dumps({"token": 1.5}), "the pickle uses BINFLOAT"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "needs too much memory"),
        (b"cos\nsystem\n(S'true'\ntR.", "the pickle uses GLOBAL"),
        (b"\x80\x02\x82\x01.", "the pickle uses EXT1"),
        (b"Pname\n.", "the pickle uses PERSID"),
        (b"\x80\x04]", "no readable pickle"),
        (b"", "no readable pickle"),
        (b"\x80\x02]g99999999999999999999\n.", "no readable pickle"),
    ],
)
def test_pickles_that_execute_anything_are_refused(content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        load_plain(content, "file.pkl")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1, 2], "no list token"),
        ({"token": [1], "label": [1, 2]}, "1 tokens but 2 labels"),
        ({"token": [True], "label": [1]}, "no list token"),
        ({"token": [65_536], "label": [1]}, "no list token of ids below 65536"),
        ({"token": [8197, 8806], "label": [1, 1]}, "the image at token 0 has no end"),
        ({"token": [10004, 1, 2], "label": [1, 1, 1]}, "token 0 begins no block of 7 action bins"),
        ({"token": [16_400], "label": [-100]}, "holds 0 images"),
        ({"token": [15_504, 1], "label": [1, 1]}, "token 0 begins no block of 8 state bins"),
        ({"token": STATE * 2, "label": [1] * 20}, "token 10 begins a second state"),
        ({"token": [15_504, *[15_762] * 8, 16_004], "label": [1] * 10}, "token 0 begins no block of 8 state"),
    ],
)
def test_files_that_are_no_samples_are_refused(tmp_path: Path, value: object, reason: str) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "1.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=reason):
        convert_samples(config(tmp_path), shipped_text_tokenizer(), Format())


def assert_plain_or_refused(content: bytes) -> None:
    try:
        waiting = [load_plain(content, "file.pkl")]
    except InputError:
        return
    seen: set[int] = set()  # a list may hold itself
    while waiting:
        value = waiting.pop()
        assert type(value) in (list, dict, int, str, bool, type(None))
        if id(value) not in seen and isinstance(value, list | dict):
            seen.add(id(value))
            waiting += [*value, *value.values()] if isinstance(value, dict) else value


@given(strategies.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_plain_or_refused(content: bytes) -> None:
    assert_plain_or_refused(content)


@given(strategies.data())
@settings(max_examples=200, deadline=None)
def test_changed_samples_are_plain_or_refused(data: strategies.DataObject) -> None:
    content = bytearray(pickle.dumps({"token": list(range(40)), "label": [-100] * 40, "id": 3}))
    for _ in range(data.draw(strategies.integers(1, 4))):
        content[data.draw(strategies.integers(0, len(content) - 1))] = data.draw(strategies.integers(0, 255))
    assert_plain_or_refused(bytes(content))
