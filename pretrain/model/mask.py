"""The action attention mask as two small integer vectors.

Every token carries a segment id (which sample of the packed sequence; 0 is padding) and a block id:

    0    ordinary token: text, image, end of turn
    j>0  j-th action block of the answer, that is, one that starts after the sample's last image
    j<0  action block before the last image (the action of a world sample)

Query q sees key k when k is not later, both belong to one sample, and q is not in an answer block that
hides k: a token of an answer block sees no other action block. An action sample with two blocks::

    tokens  t i a a b b e        t i a a b b e   <- key
    blocks  0 0 1 1 2 2 0      t x
                               i x x
    x: may attend              a x x x
                               a x x x x
                               b x x . . x
                               b x x . . x x
                               e x x x x x x x

A world sample (its action precedes the last image) is plain causal::

    tokens   t i  a  a j e
    blocks   0 0 -1 -1 0 0      every token sees all earlier ones

An answer block (b) does not see past actions (a) either, unless `history_actions_visible` makes them
ordinary::

    tokens   t  a  a i b b e     t a a i b b e           with history_actions_visible
    blocks   0 -1 -1 0 1 1 0   t x                     t x
                               a x x                   a x x
                               a x x x                 a x x x
                               i x x x x               i x x x x
                               b x . . x x             b x x x x x
                               b x . . x x x           b x x x x x x
                               e x x x x x x x         e x x x x x x x

Source: the published WorldVLA code (arXiv 2506.21539), which builds the same as a dense B x S x S mask.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data.tokens.vocabulary import ACTION_END, ACTION_START, IMAGE_END, IMAGE_START


def dense_mask(segments: ArrayLike | Tensor, blocks: ArrayLike | Tensor) -> Tensor:
    """The mask of one sequence, bool [S, S], True where query (row) may attend to key (column).

    Args:
        segments: Segment ids [S].
        blocks: Block ids [S].
    """
    segments, blocks = torch.as_tensor(segments), torch.as_tensor(blocks)
    if segments.ndim != 1 or segments.shape != blocks.shape:
        raise ValueError(
            f"segments {tuple(segments.shape)} and blocks {tuple(blocks.shape)}: expected two equal [S]"
        )
    order = torch.arange(len(segments), device=segments.device)
    return visible(segments, blocks, order, segments, blocks, order)


def visible(
    query_segments: Tensor,
    query_blocks: Tensor,
    query_order: Tensor,
    key_segments: Tensor,
    key_blocks: Tensor,
    key_order: Tensor,
) -> Tensor:
    """The mask rule: bool [..., Q, K] from the vectors of queries [..., Q] and keys [..., K].

    `order` is the index in the sequence; a key later than the query is never seen.
    """
    query_block = query_blocks.unsqueeze(-1)
    key_block = key_blocks.unsqueeze(-2)
    hidden = (query_block > 0) & (key_block != 0) & (key_block != query_block)
    return (
        (key_order.unsqueeze(-2) <= query_order.unsqueeze(-1))
        & (query_segments.unsqueeze(-1) == key_segments.unsqueeze(-2))
        & ~hidden
    )


def effective_blocks(blocks: Tensor, action_mask: bool, history_actions_visible: bool) -> Tensor:
    """Block ids that give the paper's ablations under the same rule, of the shape of `blocks`.

    Args:
        blocks: Block ids, any shape.
        action_mask: False makes every token ordinary: plain causal attention within each sample.
        history_actions_visible: True makes the blocks before the last image ordinary, and so visible to
            answer blocks.
    """
    if not action_mask:
        return torch.zeros_like(blocks)
    return blocks.clamp(min=0) if history_actions_visible else blocks


def mask_vectors(tokens: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Segment and block ids, int32 [S] each, of one raw sample (ids [S], unpacked, without padding).

    Without an image every action block counts as an answer. In a truncated sample an action block or an
    image without its end extends to the end of the sample; after such an image there is no answer block.
    """
    ids = np.asarray(tokens)
    index = np.arange(len(ids))
    latest_start = np.maximum.accumulate(np.where(ids == ACTION_START, index, -1))
    ends = np.where(ids == ACTION_END, index, -1)
    latest_end_before = np.maximum.accumulate(np.concatenate([[-1], ends[:-1]])) if len(ids) else ends
    inside = (latest_start >= 0) & (latest_start > latest_end_before)
    image_bounds = np.flatnonzero((ids == IMAGE_START) | (ids == IMAGE_END))
    if not len(image_bounds):
        images_end = 0
    else:
        last = image_bounds[-1]
        images_end = last + 1 if ids[last] == IMAGE_END else len(ids)
    number = np.cumsum(ids == ACTION_START)
    before = np.count_nonzero(ids[:images_end] == ACTION_START)
    signed = np.where(number > before, number - before, -number)
    return np.ones(len(ids), np.int32), np.where(inside, signed, 0).astype(np.int32)


def mask_from_tokens(tokens: ArrayLike) -> Tensor:
    """The mask of one raw WorldVLA sample, bool [S, S], True where row may attend to column."""
    return dense_mask(*mask_vectors(tokens))
