"""Decoding of action chunks, batched, with a cache of keys and values.

An action chunk is decoded *in parallel*: under the action mask the K action blocks do not see one
another, so all of them advance together. After the prompt, D steps of K tokens give the chunk of actions of
D numbers, whatever K; block j has the positions of the written sequence (from (D + 2) j on), and the result
equals decoding the blocks one after the other.

Structure tokens (starts and ends) are forced; bins are chosen among their own ids.

The steps only queue kernels on the device; the host waits once, for the result. They are not captured as
CUDA graphs, so on a GPU small models are bound by kernel launches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data.errors import InputError
from data.tokens.vocabulary import (
    ACTION_BIN_COUNT,
    ACTION_BIN_END,
    ACTION_BIN_START,
    ACTION_DIM,
    ACTION_END,
    ACTION_START,
    block_length,
)
from pretrain.model.decoding_session import DecodingSession
from pretrain.model.sampling import GREEDY, Sampling
from pretrain.model.transformer import Transformer

Order = Literal["parallel", "block", "token"]


@torch.inference_mode()
def decode_action_chunk(
    model: Transformer,
    prompts: Sequence[ArrayLike],
    chunk: int,
    sampling: Sampling = GREEDY,
    order: Order = "parallel",
    width: int = 0,
    action_dim: int = ACTION_DIM,
    given: Mapping[int, int] | None = None,
) -> NDArray[np.int64]:
    """Action bins of the next `chunk` actions.

    Args:
        model: Plain (not tensor-parallel) transformer, in evaluation mode.
        prompts: Token ids [S] of each of B action prompts (they may differ in length).
        chunk: K, actions to decode.
        sampling: How bins are chosen.
        order: `parallel` advances all blocks at once; `block` decodes one block after the other; `token`
            decodes every token of the answer on its own, structure tokens too, as plain autoregressive
            generation does. All give the same bins, but for rounding: in bf16 another order of summation may
            choose another bin. A model without the action mask decodes block after block instead of in
            parallel, since its blocks attend to one another.
        width: As in `DecodingSession`.
        action_dim: D, numbers of an action.
        given: Ids of the bins of dimensions that are not decoded but written as in training: those that the
            robot does not have.

    Returns:
        Bin ids int64 [B, K, D].

    Raises:
        InputError: chunk < 1, an unknown order, or as `DecodingSession` and `Sampling.noise`.
    """
    if chunk < 1:
        raise InputError(f"chunk={chunk}: expected at least one action")
    if order not in get_args(Order):
        raise InputError(f"order={order}: expected one of {', '.join(get_args(Order))}")
    given, length = given or {}, block_length(action_dim)
    blocks = np.arange(1, chunk + 1).repeat(length)
    session = DecodingSession(model, prompts, blocks, largest=ACTION_END, width=width)
    noise = sampling.noise(session.batch, (chunk, action_dim), ACTION_BIN_COUNT, session.device)
    independent = model.config.action_mask
    group_size = chunk if order == "parallel" and independent else 1
    start = torch.full((1, group_size), ACTION_START, device=session.device)
    end = torch.full((session.batch, 1), ACTION_END, device=session.device)

    bins: list[Tensor] = []
    for first in range(0, chunk, group_size):
        group = slice(first, first + group_size)
        offset, end_offset = first * length, (first + group_size) * length
        if bins and order == "token":
            session.forward(bins[-1], slice(offset - 2, offset - 1))
            session.forward(end, slice(offset - 1, offset))
        elif bins and not independent:  # this block attends to the last bin and the end of the previous one
            session.forward(torch.cat([bins[-1], end], dim=1), slice(offset - 2, offset))
        token = start
        for dimension in range(action_dim):
            hidden = session.forward(token, slice(offset + dimension, end_offset, length))
            if dimension in given:
                token = torch.full((session.batch, group_size), given[dimension], device=session.device)
            else:
                logits = session.logits(hidden, ACTION_BIN_START, ACTION_BIN_END)
                draw = None if noise is None else noise[:, group, dimension]
                token = sampling.choose(logits, draw) + ACTION_BIN_START
            bins.append(token)
    decoded = torch.stack(bins).unflatten(0, (-1, action_dim))  # [groups, D, B, group_size]
    return decoded.permute(2, 0, 3, 1).reshape(session.batch, chunk, action_dim).cpu().numpy()
