"""WorldVLA's published samples to episode shards.

The published data are samples, not episodes: an *action sample* holds an instruction, frames up to t and the
actions from t on, a *world sample* frame t, action t and frame t + 1. World samples in order of time share
their frames, so an episode's frames and actions can be restored exactly as codes and bins; the instruction is
that of an action sample of the same frame and action. Not in the data, and so not in the shards: the robot's
state (zeros instead) and the action of an episode's last frame (the frame is left out).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config import ConvertSamplesConfig
from data.contracts import AGENT_CAMERA, Episode
from data.errors import InputError
from data.prepare.index_builder import FrameFormat, assign_splits, check_out, commit_index
from data.prepare.statistics import summarise
from data.sources.instructions import clean_instruction, slug
from data.sources.token_pickles import TokenSample, list_samples, read_sample
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, ImageFormat
from data.storage.shards import ShardWriter
from data.storage.store import open_store
from data.tokens.action import NAMED_RANGES, ActionRanges, restore
from data.tokens.prompt_text import ACTION_TEXT
from data.tokens.text import TextTokenizer
from data.tokens.vocabulary import STATE_DIM

_QUESTION = re.compile(re.escape(ACTION_TEXT).replace(re.escape("{task}"), "(.+?)"), re.DOTALL)
_MIN_MEAN_LENGTH = 2.0  # steps of an episode; fewer: the files are not in the order of time

Progress = Callable[[int, int], None]
"""Called with (files read, files to read: each is read twice)."""


@dataclass(frozen=True, slots=True)
class _Chain:
    """Frames int64 codes [R, C] and their actions' bins [7], one after the other in time."""

    frames: list[NDArray[np.int64]]
    bins: list[NDArray[np.int64]]


def convert_samples(
    config: ConvertSamplesConfig, text: TextTokenizer, image: FrameFormat, progress: Progress | None = None
) -> DatasetIndex:
    """Write the data set of `config.source` below `config.out` and return its index.

    Raises:
        InputError: A file is no sample, the tokenizers are not those of the samples, or no episodes can be
            restored from them.
    """
    ranges = NAMED_RANGES[config.ranges]
    check_out(config.out)
    paths = list_samples(Path(config.source))

    def read(before: int) -> Iterator[TokenSample]:
        for done, path in enumerate(paths, start=1):
            sample = read_sample(path)
            _check_grid(sample, image, path)
            yield sample
            if progress is not None:
                progress(before + done, 2 * len(paths))

    instructions = _instructions(read(0), text)
    limit = round(config.shard_megabytes * 1_000_000)
    writer = ShardWriter(open_store(config.out), limit, compression=config.compression)
    episodes: list[Episode] = []  # without their codes
    counts: Counter[str] = Counter()
    for chain in _chains(read(len(paths))):
        instruction = _instruction_of(chain, instructions, config.source)
        task = slug(instruction)
        episode = _episode(chain, f"{task}/demo_{counts[task]}", config.suite, instruction, ranges)
        counts[task] += 1
        writer.add(episode)
        episodes.append(
            Episode(episode.key, config.suite, task, instruction, {}, episode.actions, episode.states)
        )
    steps = sum(episode.length for episode in episodes)
    if steps < _MIN_MEAN_LENGTH * len(episodes) or not episodes:
        raise InputError(
            f"{config.source}: its world samples give {len(episodes)} episodes of {steps} steps together, "
            "which are none; expected world samples whose files are numbered in the order of time"
        )
    return _finish(config, image, ranges, episodes, writer)


def _finish(
    config: ConvertSamplesConfig,
    image: FrameFormat,
    ranges: ActionRanges,
    episodes: list[Episode],
    writer: ShardWriter,
) -> DatasetIndex:
    splits = assign_splits([episode.task for episode in episodes])
    training = [episode for episode, split in zip(episodes, splits, strict=True) if split == "train"]
    entries = [
        EpisodeEntry.of(episode, location, split)
        for episode, location, split in zip(episodes, writer.close(), splits, strict=True)
    ]
    index = DatasetIndex(
        image=ImageFormat(image.pixels, image.rows, image.columns, image.codebook_size, image.sha256),
        cameras=(AGENT_CAMERA,),
        action_ranges=ranges,
        statistics={
            "actions": summarise([episode.actions for episode in training]),
            "states": summarise([episode.states for episode in training]),
        },
        episodes=EpisodeTable.of(entries),
        url=config.out,
        compression=config.compression,
        resize="box_bicubic",  # by the published code
    )
    commit_index(index)
    return index


def _instructions(samples: Iterator[TokenSample], text: TextTokenizer) -> dict[bytes, str]:
    """Map frame and action to the instruction, from the action samples."""
    instructions: dict[bytes, str] = {}
    words: dict[tuple[int, ...], str | None] = {}
    for sample in samples:
        ids = tuple(sample.text)
        if ids not in words:
            question = _QUESTION.search(text.decode(list(ids)))
            words[ids] = clean_instruction(question[1], "a sample") if question else None
        instruction = words[ids]
        if instruction is not None:
            instructions[_key(sample.images[-1], sample.actions[0])] = instruction
    return instructions


def _chains(samples: Iterator[TokenSample]) -> Iterator[_Chain]:
    """Runs of world samples (two frames, one action between them) that share their frames."""
    chain = _Chain([], [])
    following: NDArray[np.int64] | None = None
    for sample in samples:
        if len(sample.images) != 2 or len(sample.actions) != 1:
            continue
        if following is not None and not np.array_equal(following, sample.images[0]):
            yield chain
            chain = _Chain([], [])
        chain.frames.append(sample.images[0])
        chain.bins.append(sample.actions[0])
        following = sample.images[1]
    if chain.frames:
        yield chain


def _instruction_of(chain: _Chain, instructions: Mapping[bytes, str], source: str) -> str:
    for frame, bins in zip(chain.frames, chain.bins, strict=True):
        instruction = instructions.get(_key(frame, bins))
        if instruction is not None:
            return instruction
    raise InputError(
        f"{source}: no action sample gives the instruction of an episode of {len(chain.bins)} steps; put "
        "action and world samples of the same demonstrations below one folder, and give their text_tokenizer"
    )


def _key(frame: NDArray[np.int64], bins: NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(frame.tobytes() + bins.tobytes(), digest_size=16).digest()


def _episode(chain: _Chain, key: str, suite: str, instruction: str, ranges: ActionRanges) -> Episode:
    return Episode(
        key=key,
        suite=suite,
        task=slug(instruction),
        instruction=instruction,
        codes={AGENT_CAMERA: np.stack(chain.frames).astype(np.uint16)},
        actions=restore(np.stack(chain.bins), ranges),
        states=np.zeros((len(chain.bins), STATE_DIM), np.float32),
    )


def _check_grid(sample: TokenSample, image: FrameFormat, path: Path) -> None:
    for codes in sample.images:
        if codes.shape != (image.rows, image.columns) or int(codes.max()) >= image.codebook_size:
            raise InputError(
                f"{path}: images of {codes.shape} codes up to {codes.max()}, the image tokenizer makes "
                f"{image.rows} x {image.columns} below {image.codebook_size}; give the one that made them"
            )
