"""Packed WorldVLA sequences of random frames, words and actions, laid out as the training stream does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.contracts import PackedBatch
from data.stream.order.packing import assign_sequences
from data.stream.samples import SampleForm
from data.tokens.action import bin_centers
from data.tokens.image_block import image_block
from data.tokens.vocabulary import ACTION_BIN_END, ACTION_BIN_START, ACTION_DIM, IMAGE_CODE_COUNT, TEXT_START
from tests.support.reference_samples import Sample, action_sample, pack, world_sample

HISTORY, CHUNK = 2, 5  # M and K of WorldVLA
LAYOUTS = ("packed", "one")
WORDS = 20  # ids of an instruction
SIDES = {64: 8, 256: 16}  # pixels -> codes, as in the two image tokenizers


def packed_batch(sequences: int, length: int, pixels: int = 256, seed: int = 0) -> PackedBatch:
    """As many action as world samples, as full as they fit.

    Args:
        sequences: B.
        length: S, tokens of a sequence.
        pixels: Side of a frame: 256 (16 x 16 codes) or 64 (8 x 8).
        seed: Of the content; the layout does not depend on it.
    """
    random = np.random.default_rng(seed)
    lengths = np.array([len(_action(random, pixels)), len(_world(random, pixels))], np.int64)
    pairs = sequences * length // int(lengths.sum())
    while (places := assign_sequences(np.repeat(lengths, pairs), sequences, length)) is None:
        pairs -= 1
    rows: list[list[Sample]] = [[] for _ in range(sequences)]
    for number, place in enumerate(places.tolist()):
        rows[place].append(_action(random, pixels) if number < pairs else _world(random, pixels))
    return pack(rows, length)


def packed_row(layout: str, tokens: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Segment and block ids [1, tokens] of one sequence of any length.

    Args:
        layout: `packed`: an action sample, a world sample and so on while they fit, and padding; `one`: one
            action sample that fills the sequence, nearly all of it words.
        tokens: Length of the sequence.
    """
    random = np.random.default_rng(0)
    if layout == "one":
        words = _words(random, tokens - SampleForm(0, chunk=CHUNK).action_length(0, 0))
        row = [action_sample(words, [], _bins(random, CHUNK))]
    else:
        row, samples = [], (_action(random, 256), _world(random, 256))
        while sum(map(len, row)) + len(samples[len(row) % 2]) <= tokens:
            row.append(samples[len(row) % 2])
    batch = pack([row], tokens)
    return batch.segments, batch.blocks


def visible_pairs(segments: NDArray[np.int32], blocks: NDArray[np.int32]) -> int:
    """Number of visible pairs of tokens under the mask of [1, S], counted without building it."""
    count = 0
    for segment in np.unique(segments):
        block = blocks[segments == segment]
        ordinary = np.cumsum(block == 0)
        answers = block[block > 0]
        lengths = np.unique(answers, return_counts=True)[1]
        count += int((np.flatnonzero(block <= 0) + 1).sum() + ordinary[block > 0].sum())
        count += int((lengths * (lengths + 1) // 2).sum())
    return count


def _action(random: np.random.Generator, pixels: int) -> Sample:
    words, frames, bins = _words(random), _frames(random, HISTORY, pixels), _bins(random, CHUNK)
    return action_sample(words, list(frames), bins, targets=bin_centers(bins).astype(np.float32))


def _world(random: np.random.Generator, pixels: int) -> Sample:
    now, following = _frames(random, 2, pixels)
    return world_sample(_words(random), now, _bins(random, 1)[0], following)


def _words(random: np.random.Generator, count: int = WORDS) -> np.ndarray:
    return random.integers(TEXT_START, TEXT_START + 512, count)  # ids that the smallest vocabulary has


def _frames(random: np.random.Generator, count: int, pixels: int) -> np.ndarray:
    side = SIDES[pixels]
    return image_block(random.integers(0, IMAGE_CODE_COUNT, (count, side, side)), pixels)


def _bins(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(ACTION_BIN_START, ACTION_BIN_END, (count, ACTION_DIM))
