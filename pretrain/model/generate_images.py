"""Decoding of the images that a world model predicts, batched, with a cache of keys and values.

Structure tokens (starts, ends, grid size, line breaks) are forced; codes are chosen among their own ids. The
steps only queue kernels on the device; the host waits once, for the result. On a GPU each step is a CUDA
graph (`pretrain.model.decoding.graphs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from data.errors import InputError
from data.tokens.vocabulary import (
    IMAGE_CODE_COUNT,
    IMAGE_CODE_START,
    IMAGE_END,
    IMAGE_NEW_LINE,
    IMAGE_START,
    grid_size_token,
)
from pretrain.model.decoding_session import Answer, Choice, DecodingSession, GraphChoice, Step
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
    graphs: GraphChoice = "auto",
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
        graphs: As in `DecodingSession`.

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
    scale = None if guidance is None else guidance.scale
    choice = Choice(
        IMAGE_CODE_START,
        IMAGE_CODE_START + codebook_size,
        1,
        Sampling(sampling.temperature, sampling.top_k),
        scale,
    )
    device = model.lm_head.weight.device
    noise = sampling.noise(len(prompts), (images, rows * columns), codebook_size, device)
    noise = None if noise is None else noise.flatten(1, 2)
    all_prompts = prompts if guidance is None else [*prompts, *guidance.prompts]
    answer, codes = _answer(rows, columns, pixels, images)
    firsts = np.concatenate([[0], codes[:-1]])  # a step's tokens: from one code to the last before the next
    steps = [Step(np.arange(*bounds), choice) for bounds in zip(firsts, codes, strict=True)]
    with DecodingSession(model, all_prompts, answer, noise=noise, graphs=graphs) as session:
        session.run(steps)
        chosen = session.tokens[: len(prompts)].cpu().numpy()[:, codes] - IMAGE_CODE_START
    return chosen.reshape(len(prompts), images, rows, columns).astype(np.uint16)


def _answer(rows: int, columns: int, pixels: int, images: int) -> tuple[Answer, NDArray[np.int64]]:
    """The written images, all codes missing, and the offsets int64 [images * R * C] of the codes."""
    side = grid_size_token(pixels)
    head, grid = [IMAGE_START, side, side], np.full((rows, columns + 1), IMAGE_CODE_START, np.int64)
    grid[:, -1] = IMAGE_NEW_LINE
    block = np.concatenate([head, grid.ravel(), [IMAGE_END]])
    within = len(head) + np.arange(grid.size).reshape(grid.shape)[:, :-1].ravel()
    codes = (np.arange(images)[:, None] * len(block) + within).ravel()
    # the end of the last image is not decoded: nothing depends on it
    tokens = np.tile(block, images)[:-1]
    places = np.zeros_like(tokens)
    places[codes - 1] = np.arange(len(codes))
    return Answer(tokens, np.zeros_like(tokens), places), codes
