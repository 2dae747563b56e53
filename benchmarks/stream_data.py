"""The data set of the stream's benchmark: simulated robot episodes, and the same windows as pickled samples.

Episodes are as WorldVLA's at 256 pixels: 80 to 300 steps, 16 x 16 codes a frame of which three in ten change
from step to step, actions that wander smoothly, one of forty instructions of four to fourteen words.
"""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from data.contracts import AGENT_CAMERA, Episode
from data.prepare.statistics import summarise
from data.storage.episode_entry import EpisodeEntry
from data.storage.episode_table import EpisodeTable
from data.storage.index import DatasetIndex, ImageFormat
from data.storage.shards import ShardWriter
from data.storage.store import open_store
from data.tokens.action import ActionRanges, encode
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT, action_text
from data.tokens.text import TextTokenizer
from tests.support.reference_samples import Sample, action_sample, world_sample

PIXELS, SIDE, CODES = 256, 16, 8192
HISTORY, CHUNK = 2, 5
_SHARD_BYTES = 8 * 2**20
_SHORTEST, _LONGEST = 80, 301
_WORDS = "pick up the black bowl between plate and ramekin put it on stove open top drawer of cabinet"


def simulated_episode(number: int) -> Episode:
    """Episode `number`; the same for the same number."""
    random = np.random.default_rng([7, number])
    steps = int(random.integers(_SHORTEST, _LONGEST))
    fresh = random.integers(0, CODES, (steps, SIDE * SIDE), dtype=np.uint16)
    changes = random.random((steps, SIDE * SIDE)) < 0.3
    changes[0] = True
    newest = np.maximum.accumulate(np.where(changes, np.arange(steps)[:, None], 0), axis=0)
    task = np.random.default_rng([8, number % 40])
    words = task.choice(_WORDS.split(), int(task.integers(4, 15)))
    return Episode(
        key=f"simulated/demo_{number}",
        suite="simulated",
        task=f"task_{number % 40}",
        instruction=" ".join(words.tolist()),
        codes={AGENT_CAMERA: np.take_along_axis(fresh, newest, 0).reshape(steps, SIDE, SIDE)},
        actions=np.tanh(random.normal(0, 0.05, (steps, 7)).cumsum(0)),
        states=random.normal(0, 0.02, (steps, 8)).cumsum(0).astype(np.float32),
    )


def write_episodes(folder: Path, count: int) -> str:
    """Shards and index of `count` episodes below `folder`, all of them for training; returns the URL."""
    writer = ShardWriter(open_store(str(folder)), _SHARD_BYTES)
    episodes = [simulated_episode(number) for number in range(count)]
    for episode in episodes:
        writer.add(episode)
    entries = [
        EpisodeEntry.of(episode, at, "train") for episode, at in zip(episodes, writer.close(), strict=True)
    ]
    DatasetIndex(
        image=ImageFormat(PIXELS, SIDE, SIDE, CODES, tokenizer_sha256="0" * 64),
        cameras=(AGENT_CAMERA,),
        action_ranges=ActionRanges(),
        statistics={
            "actions": summarise([episode.actions for episode in episodes]),
            "states": summarise([episode.states for episode in episodes]),
        },
        episodes=EpisodeTable.of(entries),
    ).save(str(folder))
    return str(folder)


def write_samples(folder: Path, count: int) -> int:
    """The windows of `count` episodes as pickled samples in archives below `folder`; returns how many.

    A sample is what the published WorldVLA data hold, lists of ids in a dictionary; samples of an archive are
    shuffled, an archive has those of 20 episodes.
    """
    folder.mkdir()
    text, total = TextTokenizer.load(), 0
    for first in range(0, count, 20):
        numbers = range(first, min(first + 20, count))
        samples = [s for number in numbers for s in _samples(simulated_episode(number), text)]
        np.random.default_rng(first).shuffle(samples)  # pyright: ignore[reportArgumentType]
        with tarfile.open(folder / f"samples-{first:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
            for number, sample in enumerate(samples, start=total):
                labels = [-100, *sample.labels[:-1].tolist()]
                content = pickle.dumps({"token": sample.tokens.tolist(), "label": labels, "id": number})
                info = tarfile.TarInfo(f"{number:08d}.pkl")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        total += len(samples)
    return total


def _samples(episode: Episode, text: TextTokenizer) -> Iterator[Sample]:
    frames, bins = image_block(episode.codes[AGENT_CAMERA], PIXELS), encode(episode.actions)
    words, world = text.encode(action_text(episode.instruction)), text.encode(WORLD_TEXT)
    for t in range(episode.length - CHUNK + 1):
        seen = list(frames[max(0, t - HISTORY + 1) : t + 1])
        yield action_sample(words, seen, bins[t : t + CHUNK])
    for t in range(episode.length - 1):
        yield world_sample(world, frames[t], bins[t], frames[t + 1])


def window_count(lengths: Iterable[int]) -> int:
    """Action and world windows of episodes of these lengths."""
    return sum(2 * length - CHUNK for length in lengths)
