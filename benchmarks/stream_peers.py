"""The baselines of the stream benchmark: webdataset's own pipelines over the same windows.

    episode_batches   windows cut from episode shards and packed one after the other, with the five arrays
                      that a training needs
    token_batches     the same windows as padded tokens only: no labels, positions, segments, block ids
    sample_batches    pickled samples, one record each, as padded tokens only

None verifies a checksum, and windows are shuffled among the last 1,000 only. Everything that an episode's
windows have in common is computed once for each episode, or once in total.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray

from benchmarks.stream_data import CHUNK, HISTORY, PIXELS
from data.contracts import AGENT_CAMERA, PackedBatch
from data.stream.samples import action_blocks, answer_block_ids
from data.tokens.action import encode
from data.tokens.image_block import image_block
from data.tokens.prompt_text import WORLD_TEXT, action_text
from data.tokens.text import TextTokenizer
from data.tokens.vocabulary import BOS, END_OF_TURN, IGNORED_LABEL, PADDING

_BATCH = 64
_SHUFFLED = 1000  # windows or samples in the shuffle buffer

Tokens = NDArray[np.int32]
Window = tuple[Tokens, int, bool]  # tokens, index of the answer, whether it is a world sample


def episode_batches(folder: Path, sequences: int, sequence_length: int) -> Iterable[PackedBatch]:
    """Packed batches [sequences, sequence_length]; the last is filled up with empty sequences."""
    return _packed(_pipeline(folder).compose(_cut).shuffle(_SHUFFLED), sequences, sequence_length)


def token_batches(folder: Path) -> Iterable[Tokens]:
    """Windows cut from episode shards: int32 [64, longest] (the last batch holds what is left)."""
    windows = _pipeline(folder).compose(_cut).map(lambda window: window[0])
    return windows.shuffle(_SHUFFLED).batched(_BATCH, collation_fn=_padded)


def sample_batches(folder: Path) -> Iterable[Tokens]:
    """Pickled samples: int32 [64, longest] (the last batch holds what is left)."""

    def tokens(sample: dict[str, Any]) -> Tokens:
        return np.array(sample["pkl"]["token"], np.int32)

    return _pipeline(folder).map(tokens).shuffle(_SHUFFLED).batched(_BATCH, collation_fn=_padded)


def _pipeline(folder: Path) -> Any:
    urls = sorted(str(path) for path in folder.glob("*.tar"))
    package: Any = webdataset
    return package.WebDataset(urls, shardshuffle=len(urls), seed=0).decode()


def _cut(episodes: Iterable[dict[str, Any]]) -> Iterator[Window]:
    """All windows of each episode, each one concatenation of pieces computed once for the episode."""
    text, encoded = TextTokenizer.load(), dict[str, Tokens]()
    end, world = np.array([END_OF_TURN], np.int32), np.array([BOS, *text.encode(WORLD_TEXT)], np.int32)
    for episode in episodes:
        instruction = episode["json"]["instruction"]
        if instruction not in encoded:
            encoded[instruction] = np.array([BOS, *text.encode(action_text(instruction))], np.int32)
        words = encoded[instruction]
        frames = image_block(episode[f"codes.{AGENT_CAMERA}.npy"], PIXELS).astype(np.int32)
        actions = action_blocks(encode(episode["actions.npy"])).reshape(len(frames), -1)
        for t in range(len(frames) - CHUNK + 1):
            seen, answer = frames[max(0, t - HISTORY + 1) : t + 1].reshape(-1), actions[t : t + CHUNK]
            tokens = np.concatenate([words, seen, end, answer.reshape(-1), end])
            yield tokens, len(words) + len(seen) + 1, False
        for t in range(len(frames) - 1):
            tokens = np.concatenate([world, frames[t], actions[t], end, frames[t + 1], end])
            yield tokens, len(tokens) - len(frames[t]) - 1, True


def _packed(windows: Iterable[Window], sequences: int, length: int) -> Iterator[PackedBatch]:
    """Append each window to the current sequence, or start the next one if it does not fit."""
    actions, before = answer_block_ids(CHUNK), -answer_block_ids(1)
    count = np.arange(length, dtype=np.int32)
    batch = _empty(sequences, length)
    row = end = number = 0
    for tokens, answer, world in windows:
        size = len(tokens)
        if end + size > length:
            row, end, number = row + 1, 0, 0
            if row == sequences:
                yield batch
                batch, row = _empty(sequences, length), 0
        start, end, number = end, end + size, number + 1
        batch.tokens[row, start:end] = tokens
        batch.labels[row, start + answer - 1 : end - 1] = tokens[answer:]
        batch.positions[row, start:end] = count[:size]
        batch.segments[row, start:end] = number
        if world:
            batch.blocks[row, start + answer - 1 - len(before) : start + answer - 1] = before
        else:
            batch.blocks[row, start + answer : end - 1] = actions
    yield batch


def _empty(sequences: int, length: int) -> PackedBatch:
    shape = (sequences, length)
    tokens, labels = np.full(shape, PADDING, np.int32), np.full(shape, IGNORED_LABEL, np.int32)
    positions, segments, blocks = (np.zeros(shape, np.int32) for _ in range(3))
    return PackedBatch(tokens, labels, positions, segments, blocks)


def _padded(samples: Sequence[Tokens]) -> Tokens:
    batch = np.full((len(samples), max(map(len, samples))), PADDING, np.int32)
    for row, sample in zip(batch, samples, strict=True):
        row[: len(sample)] = sample
    return batch
