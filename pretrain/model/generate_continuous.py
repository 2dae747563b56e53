"""Continuous actions of the action head: one forward pass over the prompt, nothing is sampled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from data.errors import InputError
from data.tokens.vocabulary import ACTION_START
from pretrain.model.action_prompts import ActionPrompts
from pretrain.model.attention.host import on_device
from pretrain.model.attention.prompts import prompt_mask
from pretrain.model.decoding.prompts import padded_prompts
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
        float32 [B, K, D], K and D of the head; in training -1 to 1, here not clipped.

    Raises:
        InputError: The model has no action head, or as `pretrain.model.decoding.prompts.padded_prompts`.
    """
    if model.action_head is None:
        raise InputError(
            "the model has no continuous action head (model.action_head is null); decode its actions as "
            "tokens"
        )
    padded = padded_prompts(model, prompts, 0, ACTION_START, width)
    batch, width = padded.tokens.shape
    device = model.lm_head.weight.device
    segments, blocks = torch.from_numpy(padded.segments), torch.from_numpy(padded.blocks)
    mask = prompt_mask(segments, blocks, model.config, device, model.lm_head.weight.dtype)
    positions = torch.arange(width, device=device).expand(batch, width)
    hidden = model.model(on_device(padded.tokens, device), positions, mask)
    ends = width * np.arange(batch, dtype=np.int64) + padded.lengths
    queries = model.action_head.queries
    actions = model.action_head(hidden, ActionPrompts.of(ends, padded.lengths, queries, device, width))
    return actions.cpu().numpy()
