"""Decoding of action chunks and of images, batched, with a cache of keys and values.

An action chunk is decoded *in parallel*: under the action mask the K action blocks do not see one
another, so all of them advance together. After the prompt, seven steps of K tokens give the chunk,
whatever K; block j has the positions of the written sequence (from 9 j on), and the result equals
decoding the blocks one after the other.

Structure tokens (starts, ends, grid size, line breaks) are forced; bins and codes are chosen among their
own ids.

The steps only queue kernels on the device; the host waits once, for the result. They are not captured as
CUDA graphs, so on a GPU small models are bound by kernel launches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    ACTION_BLOCK_LENGTH,
    ACTION_DIM,
    ACTION_END,
    ACTION_START,
    IMAGE_CODE_COUNT,
    IMAGE_CODE_START,
    IMAGE_NEW_LINE,
    IMAGE_START,
    grid_size_token,
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

    Returns:
        Bin ids int64 [B, K, 7].

    Raises:
        InputError: chunk < 1, an unknown order, or as `DecodingSession` and `Sampling.noise`.
    """
    if chunk < 1:
        raise InputError(f"chunk={chunk}: expected at least one action")
    if order not in get_args(Order):
        raise InputError(f"order={order}: expected one of {', '.join(get_args(Order))}")
    blocks = np.arange(1, chunk + 1).repeat(ACTION_BLOCK_LENGTH)
    session = DecodingSession(model, prompts, blocks, largest=ACTION_END, width=width)
    noise = sampling.noise(session.batch, (chunk, ACTION_DIM), ACTION_BIN_COUNT, session.device)
    independent = model.config.action_mask
    group_size = chunk if order == "parallel" and independent else 1
    start = torch.full((1, group_size), ACTION_START, device=session.device)
    end = torch.full((session.batch, 1), ACTION_END, device=session.device)

    bins: list[Tensor] = []
    for first in range(0, chunk, group_size):
        group = slice(first, first + group_size)
        offset, end_offset = first * ACTION_BLOCK_LENGTH, (first + group_size) * ACTION_BLOCK_LENGTH
        if bins and order == "token":
            session.forward(bins[-1], slice(offset - 2, offset - 1))
            session.forward(end, slice(offset - 1, offset))
        elif bins and not independent:  # this block attends to the last bin and the end of the previous one
            session.forward(torch.cat([bins[-1], end], dim=1), slice(offset - 2, offset))
        token = start
        for dimension in range(ACTION_DIM):
            hidden = session.forward(token, slice(offset + dimension, end_offset, ACTION_BLOCK_LENGTH))
            logits = session.logits(hidden, ACTION_BIN_START, ACTION_BIN_END)
            draw = None if noise is None else noise[:, group, dimension]
            token = sampling.choose(logits, draw) + ACTION_BIN_START
            bins.append(token)
    decoded = torch.stack(bins).unflatten(0, (-1, ACTION_DIM))  # [groups, 7, B, group_size]
    return decoded.permute(2, 0, 3, 1).reshape(session.batch, chunk, ACTION_DIM).cpu().numpy()


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

    Ids are chosen by u + scale * (c - u), where c are the logits after the prompts and u those after the
    unconditional prompts; both answers hold the same tokens and are decoded in one batch.

    Attributes:
        scale: 1 is no guidance; larger values follow the condition more closely.
        prompts: The unconditional prompt [S] of each prompt: the same without the condition.

    Raises:
        InputError: The scale is negative or not finite.
    """

    scale: float
    prompts: Sequence[ArrayLike]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise InputError(
                f"guidance scale {self.scale}: expected a finite number of at least 0; 1 is none"
            )

    def mix(self, logits: Tensor) -> Tensor:
        """Guided logits: [2 B, ...], the conditional ones first -> fp32 [B, ...]."""
        conditional, unconditional = logits.float().chunk(2)
        return torch.lerp(unconditional, conditional, self.scale)


@torch.inference_mode()
def decode_image(
    model: Transformer,
    prompts: Sequence[ArrayLike],
    rows: int,
    columns: int,
    pixels: int,
    codebook_size: int = IMAGE_CODE_COUNT,
    sampling: Sampling = GREEDY,
    guidance: Guidance | None = None,
) -> NDArray[np.uint16]:
    """Image codes of the next frame.

    Args:
        model: Plain (not tensor-parallel) transformer, in evaluation mode.
        prompts: Token ids [S] of each of B world prompts (they may differ in length).
        rows: R, rows of image codes.
        columns: C, columns of image codes.
        pixels: Side of the image, stated by the grid tokens.
        codebook_size: Entries of the image tokenizer: the ids to choose among.
        sampling: How codes are chosen.
        guidance: Classifier-free guidance; None or scale 1: without.

    Returns:
        Codes uint16 [B, R, C].

    Raises:
        InputError: The numbers of prompts and unconditional prompts differ, or as `decode_action_chunk`.
    """
    if guidance is not None and len(guidance.prompts) != len(prompts):
        raise InputError(
            f"{len(guidance.prompts)} unconditional prompts for {len(prompts)} prompts: expected one for each"
        )
    if guidance is not None and guidance.scale == 1:
        guidance = None
    batch, side = len(prompts), grid_size_token(pixels)
    all_prompts = prompts if guidance is None else [*prompts, *guidance.prompts]
    blocks = np.zeros(3 + rows * (columns + 1), np.int64)
    session = DecodingSession(model, all_prompts, blocks, largest=side)
    noise = sampling.noise(batch, (rows * columns,), codebook_size, session.device)
    head = torch.tensor([[IMAGE_START, side, side]], device=session.device)
    new_line = torch.full((session.batch, 1), IMAGE_NEW_LINE, device=session.device)

    codes: list[Tensor] = []
    tokens, offset = head, 0
    for number in range(rows * columns):
        hidden = session.forward(tokens, slice(offset, offset + tokens.shape[1]))[:, -1]
        offset += tokens.shape[1]
        logits = session.logits(hidden, IMAGE_CODE_START, IMAGE_CODE_START + codebook_size)
        if guidance is not None:
            logits = guidance.mix(logits)
        code = sampling.choose(logits, None if noise is None else noise[:, number])
        codes.append(code)
        tokens = (code + IMAGE_CODE_START).repeat(session.batch // batch)[:, None]
        if (number + 1) % columns == 0:
            tokens = torch.cat([tokens, new_line], dim=1)
    return torch.stack(codes, dim=1).reshape(batch, rows, columns).cpu().numpy().astype(np.uint16)
