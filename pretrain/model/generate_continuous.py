"""Continuous actions of the action head: one forward pass over the prompt, nothing is sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from data.errors import InputError
from data.tokens.vocabulary import ACTION_DIM, ACTION_START, PADDING
from pretrain.model.action_prompts import ActionPrompts
from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.causal import CausalMask
from pretrain.model.attention.dense import DenseMask
from pretrain.model.decoding_session import check_prompts
from pretrain.model.mask import effective_blocks, mask_vectors
from pretrain.model.transformer import Transformer


@torch.inference_mode()
def predict_actions(model: Transformer, prompts: Sequence[ArrayLike], width: int = 0) -> NDArray[np.float32]:
    """The next K actions after each prompt, in normalised units.

    Args:
        model: Plain (not tensor-parallel) transformer with an action head, in evaluation mode.
        prompts: Token ids [S] of each of B action prompts, their end of turn included (they may differ in
            length). The ACTION_START that follows adds nothing: the head sees what comes before it.
        width: Minimum width in tokens that the prompts are padded to; 0: the longest prompt.

    Returns:
        float32 [B, K, 7]; in training -1 to 1, here not clipped.

    Raises:
        InputError: The model has no action head, or as `pretrain.model.decoding_session.DecodingSession`.
    """
    if model.action_head is None:
        raise InputError(
            "the model has no continuous action head (model.action_head is null); decode its actions as "
            "tokens"
        )
    rows = check_prompts(model, prompts, 0, ACTION_START)
    lengths = np.array([len(row) for row in rows], np.int64)
    shape = (len(rows), max(width, int(lengths.max())))
    tokens = np.full(shape, PADDING, np.int64)
    segments, blocks = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        segments[number, : len(row)], blocks[number, : len(row)] = mask_vectors(row)
    device = model.lm_head.weight.device
    mask = _mask(model, segments, blocks)
    positions = torch.arange(shape[1], device=device).expand(shape)
    hidden = model.model(torch.from_numpy(tokens).to(device), positions, mask)
    ends = shape[1] * np.arange(len(rows), dtype=np.int64) + lengths
    queries = model.action_head.horizon * ACTION_DIM
    actions = model.action_head(hidden, ActionPrompts.of(ends, lengths, queries, device, shape[1]))
    return actions.cpu().numpy()


def _mask(model: Transformer, segments: NDArray[np.int64], blocks: NDArray[np.int64]) -> AttentionMask:
    """Causal where no action block hides others; padding is at the end, where no prompt sees it."""
    config, device = model.config, model.lm_head.weight.device
    hidden = effective_blocks(torch.from_numpy(blocks), config.action_mask, config.history_actions_visible)
    if not bool((hidden > 0).any()):
        return CausalMask()
    return DenseMask.packed(torch.from_numpy(segments).to(device), hidden.to(device))
