"""Packed WorldVLA sequences of random frames, words and actions, laid out as the training stream does."""

from __future__ import annotations

import numpy as np

from data.config import MixtureConfig
from data.contracts import PackedBatch
from data.stream.packing import pack, sample_layout
from data.stream.sequence import Sample, action_sample, world_sample
from data.tokens.image_block import image_block
from data.tokens.vocabulary import ACTION_BIN_END, ACTION_BIN_START, ACTION_DIM, IMAGE_CODE_COUNT, TEXT_START

HISTORY, CHUNK = 2, 5  # M and K of WorldVLA
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
    action, world = _action(random, pixels), _world(random, pixels)
    layout = sample_layout(MixtureConfig(), len(action), len(world), sequences, length)
    rows = [
        [_action(random, pixels) for _ in range(actions)] + [_world(random, pixels) for _ in range(worlds)]
        for actions, worlds in layout.T
    ]
    return pack(rows, length)


def _action(random: np.random.Generator, pixels: int) -> Sample:
    return action_sample(_words(random), list(_frames(random, HISTORY, pixels)), _bins(random, CHUNK))


def _world(random: np.random.Generator, pixels: int) -> Sample:
    now, following = _frames(random, 2, pixels)
    return world_sample(_words(random), now, _bins(random, 1)[0], following)


def _words(random: np.random.Generator) -> np.ndarray:
    return random.integers(TEXT_START, TEXT_START + 512, WORDS)  # ids that the smallest vocabulary has


def _frames(random: np.random.Generator, count: int, pixels: int) -> np.ndarray:
    side = SIDES[pixels]
    return image_block(random.integers(0, IMAGE_CODE_COUNT, (count, side, side)), pixels)


def _bins(random: np.random.Generator, count: int) -> np.ndarray:
    return random.integers(ACTION_BIN_START, ACTION_BIN_END, (count, ACTION_DIM))
