"""Packed sequences for tests of attention: segment and block ids [B, S]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Packing = tuple[Tensor, Tensor]


def packing(rows: Sequence[Sequence[Sequence[int]]], length: int) -> Packing:
    """Segment and block ids int32 [B, S] of rows of samples (block ids each), padded or cut at `length`."""
    segments, blocks = (torch.zeros(len(rows), length, dtype=torch.int32) for _ in range(2))
    for row, samples in enumerate(rows):
        numbers = [number for number, sample in enumerate(samples, 1) for _ in sample][:length]
        ids = [block for sample in samples for block in sample][:length]
        segments[row, : len(numbers)] = torch.tensor(numbers)
        blocks[row, : len(ids)] = torch.tensor(ids)
    return segments, blocks


def action_sample(prompt: int, chunk: int, width: int, end: int = 1, history: int = 0) -> list[int]:
    """Block ids of an action sample; `history` actions precede its last image."""
    past = [-number - 1 for number in range(history) for _ in range(width)]
    answer = [number + 1 for number in range(chunk) for _ in range(width)]
    return [0] * (prompt // 2) + past + [0] * (prompt - prompt // 2) + answer + [0] * end


def world_sample(image: int, width: int) -> list[int]:
    """Block ids of a world sample: an action between two images."""
    return [0] * image + [-1] * width + [0] * image


def worldvla(length: int, rows: int = 1, image: int = 276) -> Packing:
    """WorldVLA's training sequences: as many action (two images, five actions) as world samples."""
    pair = [action_sample(2 * image + 20, 5, 9), world_sample(image + 11, 9)]
    return packing([pair * (length // sum(map(len, pair))) + pair[:1] for _ in range(rows)], length)
