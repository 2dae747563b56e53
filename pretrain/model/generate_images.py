"""Decoding of the images that a world model predicts, batched, with a cache of keys and values.

Structure tokens (starts, ends, grid size, line breaks) are forced; codes are chosen among their own ids. The
steps only queue kernels on the device; the host waits once, for the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data.errors import InputError
from data.tokens.image_block import image_block_length
from data.tokens.vocabulary import (
    IMAGE_CODE_COUNT,
    IMAGE_CODE_START,
    IMAGE_END,
    IMAGE_NEW_LINE,
    IMAGE_START,
    grid_size_token,
)
from pretrain.model.decoding_session import DecodingSession
from pretrain.model.sampling import GREEDY, Sampling
from pretrain.model.transformer import Transformer


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
def decode_images(
    model: Transformer,
    prompts: Sequence[ArrayLike],
    rows: int,
    columns: int,
    pixels: int,
    codebook_size: int = IMAGE_CODE_COUNT,
    sampling: Sampling = GREEDY,
    guidance: Guidance | None = None,
    images: int = 1,
) -> NDArray[np.uint16]:
    """Image codes of the answers to world prompts.

    Args:
        model: Plain (not tensor-parallel) transformer, in evaluation mode.
        prompts: Token ids [S] of each of B world prompts (they may differ in length).
        rows: R, rows of image codes.
        columns: C, columns of image codes.
        pixels: Side of an image, stated by the grid tokens.
        codebook_size: Entries of the image tokenizer: the ids to choose among.
        sampling: How codes are chosen; each image has noise of its own.
        guidance: Classifier-free guidance; None or scale 1: without.
        images: N, images of an answer, each of which sees those before it: P * V for P time steps of V
            cameras, in the order of `data.stream.samples`.

    Returns:
        Codes uint16 [B, N, R, C].

    Raises:
        InputError: images < 1, the numbers of prompts and unconditional prompts differ, or as
            `decode_action_chunk`.
    """
    if images < 1:
        raise InputError(f"images={images}: expected at least one image")
    if guidance is not None and len(guidance.prompts) != len(prompts):
        raise InputError(
            f"{len(guidance.prompts)} unconditional prompts for {len(prompts)} prompts: expected one for each"
        )
    if guidance is not None and guidance.scale == 1:
        guidance = None
    batch, side = len(prompts), grid_size_token(pixels)
    all_prompts = prompts if guidance is None else [*prompts, *guidance.prompts]
    # the end of the last image is not decoded: nothing depends on it
    blocks = np.zeros(images * image_block_length(rows, columns) - 1, np.int64)
    session = DecodingSession(model, all_prompts, blocks, largest=side)
    noise = sampling.noise(batch, (images, rows * columns), codebook_size, session.device)
    head, new_line, end = (
        torch.tensor([ids], device=session.device).expand(session.batch, -1)
        for ids in ([IMAGE_START, side, side], [IMAGE_NEW_LINE], [IMAGE_END])
    )

    codes: list[Tensor] = []
    tokens, offset = head, 0
    for image in range(images):
        for place in range(rows * columns):
            hidden = session.forward(tokens, slice(offset, offset + tokens.shape[1]))[:, -1]
            offset += tokens.shape[1]
            logits = session.logits(hidden, IMAGE_CODE_START, IMAGE_CODE_START + codebook_size)
            if guidance is not None:
                logits = guidance.mix(logits)
            code = sampling.choose(logits, None if noise is None else noise[:, image, place])
            codes.append(code)
            tokens = (code + IMAGE_CODE_START).repeat(session.batch // batch)[:, None]
            if (place + 1) % columns == 0:
                tokens = torch.cat([tokens, new_line], dim=1)
        tokens = torch.cat([tokens, end, head], dim=1)
    return torch.stack(codes, dim=1).reshape(batch, images, rows, columns).cpu().numpy().astype(np.uint16)
