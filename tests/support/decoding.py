"""A small model, prompts, and decoding without cache: each token by a forward pass of the whole sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from data.stream.samples import action_prompt, world_prompt
from data.tokens.image_block import image_block
from data.tokens.vocabulary import (
    ACTION_BIN_END,
    ACTION_BIN_START,
    ACTION_END,
    ACTION_START,
    IMAGE_CODE_START,
    IMAGE_END,
    IMAGE_NEW_LINE,
    IMAGE_START,
    grid_size_token,
)
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.mask import mask_vectors
from pretrain.model.transformer import Transformer, initialise
from tests.support.chameleon import TINY

BINS = slice(ACTION_BIN_START, ACTION_BIN_END)


def small_model(scale: float = 20, **changes: object) -> Transformer:
    model = Transformer(ModelConfig(**{**TINY.__dict__, **changes}))
    initialise(model, seed=3)
    with torch.no_grad():  # far from uniform, so that there are no near ties
        model.lm_head.weight.mul_(scale)
    return model.eval()


def prompt_of(seed: int, text: int, images: int = 1) -> list[int]:
    """Words, images and the end of the turn."""
    random = np.random.default_rng(seed)
    words = random.integers(11_000, 12_000, text)
    codes = random.integers(0, 8192, (images, 2, 2))
    return action_prompt(words, list(image_block(codes, 64))).tolist()


def dream_prompt(seed: int, text: int, views: int = 1, actions: int = 1) -> list[int]:
    """Words, an image of each view and actions."""
    random = np.random.default_rng(seed)
    words, codes = random.integers(11_000, 12_000, text), random.integers(0, 8192, (views, 2, 2))
    bins = random.integers(ACTION_BIN_START, ACTION_BIN_END, (actions, 7))
    return world_prompt(words, image_block(codes, 64), bins).tolist()


@torch.no_grad()
def next_logits(model: Transformer, tokens: list[int]) -> Tensor:
    """Logits [V] after a sequence, by one forward pass."""
    segments, blocks = mask_vectors(tokens)
    mask = packed_mask(segments[None], blocks[None], model.config, torch.device("cpu"))
    return model(torch.tensor([tokens]), torch.arange(len(tokens))[None], mask)[0, -1]


def naive_chunk(
    model: Transformer,
    prompt: list[int],
    chunk: int,
    choose: Callable[[Tensor, int, int], int],
    action_dim: int = 7,
    given: Mapping[int, int] | None = None,
) -> list[list[int]]:
    """Action bins by a forward pass of the whole sequence for every token that is not given."""
    tokens, bins = list(prompt), []
    for block in range(chunk):
        tokens.append(ACTION_START)
        for dimension in range(action_dim):
            if dimension in (given or {}):
                tokens.append((given or {})[dimension])
                continue
            chosen = choose(next_logits(model, tokens)[BINS], block, dimension)
            tokens.append(ACTION_BIN_START + chosen)
        bins.append(tokens[-action_dim:])
        tokens.append(ACTION_END)
    return bins


def greedy(logits: Tensor, *_: int) -> int:
    return int(logits.argmax())


def naive_images(
    model: Transformer,
    prompt: list[int],
    rows: int,
    columns: int,
    choose: Callable[[Tensor, int, int], int],
    unconditional: list[int] | None = None,
    scale: float = 1.0,
    images: int = 1,
) -> list[list[list[int]]]:
    """Codes of images by a forward pass of the whole sequence (two when guided) for every code."""
    size = grid_size_token(64)
    answer, codes = [], []
    for image in range(images):
        answer += [IMAGE_START, size, size]
        for place in range(rows * columns):
            logits = _code_logits(model, [*prompt, *answer])
            if unconditional is not None:
                without = _code_logits(model, [*unconditional, *answer])
                logits = without + scale * (logits - without)
            codes.append(choose(logits, image, place))
            answer.append(IMAGE_CODE_START + codes[-1])
            if (place + 1) % columns == 0:
                answer.append(IMAGE_NEW_LINE)
        answer.append(IMAGE_END)
    return np.reshape(codes, (images, rows, columns)).tolist()


def _code_logits(model: Transformer, tokens: list[int]) -> Tensor:
    """Logits of the 8,192 codes after a world sample's tokens, whose last image is not at its end."""
    return next_logits(model, tokens)[IMAGE_CODE_START:][:8192]
