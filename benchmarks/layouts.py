"""Sequences to measure attention on: which sample and which action block each token belongs to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.stream.packing import pack
from data.stream.sequence import Sample, action_sample, world_sample
from data.tokens.vocabulary import ACTION_BIN_START, TEXT_START

IMAGE = 276  # tokens of a frame of 256 px
CHUNK = 5  # actions of an answer
LAYOUTS = ("packed", "one")


def packed(layout: str, tokens: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Segment and block ids [1, tokens] of a layout.

    Args:
        layout: `packed`: an action sample of two frames for each world sample, and padding; `one`: one
            action sample that fills the sequence.
        tokens: Length of the sequence.
    """
    image, bins = np.zeros(IMAGE, np.int32), np.full((CHUNK, 7), ACTION_BIN_START)

    def text(length: int) -> NDArray[np.int32]:
        return np.full(length, TEXT_START, np.int32)

    row: list[Sample] = []
    if layout == "one":
        row = [action_sample(text(tokens - len(action_sample(text(0), [], bins))), [], bins)]
    else:
        action = action_sample(text(14), [image, image], bins)
        world = world_sample(text(20), image, bins[0], image)
        while sum(map(len, row)) + len(next_sample := (action, world)[len(row) % 2]) <= tokens:
            row.append(next_sample)
    batch = pack([row], tokens)
    return batch.segments, batch.blocks


def visible_pairs(segments: NDArray[np.int32], blocks: NDArray[np.int32]) -> int:
    """How many pairs of tokens the mask of [1, S] shows, counted without making it."""
    count = 0
    for segment in np.unique(segments):
        block = blocks[segments == segment]
        ordinary = np.cumsum(block == 0)
        answers = block[block > 0]
        lengths = np.unique(answers, return_counts=True)[1]
        count += int((np.flatnonzero(block <= 0) + 1).sum() + ordinary[block > 0].sum())
        count += int((lengths * (lengths + 1) // 2).sum())
    return count
