"""Decoding with a cache against a naive reading of the whole sequence for every token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.tokens.vocabulary import (
    ACTION_BIN_END,
    ACTION_BIN_START,
    ACTION_END,
    ACTION_START,
    BOS,
    END_OF_TURN,
    IMAGE_CODE_END,
    IMAGE_CODE_START,
    IMAGE_END,
    IMAGE_NEW_LINE,
    IMAGE_START,
    grid_size_token,
)
from pretrain.model.attention.call import AttentionMask
from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.generate import decode_action_chunk, decode_image
from pretrain.model.mask import mask_vectors
from pretrain.model.transformer import Transformer, initialise

SMALL = ModelConfig(
    vocabulary_size=16_384,
    hidden_size=32,
    ffn_size=48,
    layers=2,
    heads=4,
    max_positions=256,
    dropout=0.0,
)


def small_model(**changes: object) -> Transformer:
    model = Transformer(ModelConfig(**{**SMALL.__dict__, **changes}))
    initialise(model, seed=3)
    with torch.no_grad():  # far from uniform, so that greedy choices are clear
        model.lm_head.weight.mul_(20)
    return model.eval()


def whole(tokens: list[int], config: ModelConfig = SMALL) -> tuple[torch.Tensor, torch.Tensor, AttentionMask]:
    """Model inputs of one unpacked sample."""
    segments, blocks = mask_vectors(tokens)
    mask = packed_mask(segments[None], blocks[None], config, torch.device("cpu"))
    return torch.tensor([tokens]), torch.arange(len(tokens))[None], mask


def greedy_without_cache(model: Transformer, prompt: list[int], chunk: int) -> list[list[int]]:
    """Action bins by reading the whole written sequence again for every token."""
    tokens, bins = list(prompt), []
    for _ in range(chunk):
        tokens.append(ACTION_START)
        for _ in range(7):
            with torch.no_grad():
                logits = model(*whole(tokens, model.config))[0, -1, ACTION_BIN_START:ACTION_BIN_END]
            tokens.append(int(logits.argmax()) + ACTION_BIN_START)
        bins.append(tokens[-7:])
        tokens.append(ACTION_END)
    return bins


def image_prompt(seed: int, text: int) -> list[int]:
    random = np.random.default_rng(seed)
    size = grid_size_token(64)
    codes = random.integers(IMAGE_CODE_START, IMAGE_CODE_END, (2, 2)).tolist()
    image = [IMAGE_START, size, size, *codes[0], IMAGE_NEW_LINE, *codes[1], IMAGE_NEW_LINE, IMAGE_END]
    return [BOS, *random.integers(11_000, 12_000, text).tolist(), *image, END_OF_TURN]


@pytest.mark.parametrize("action_mask", [True, False])
def test_parallel_chunk_equals_decoding_token_by_token(action_mask: bool) -> None:
    model = small_model(action_mask=action_mask)
    prompts = [image_prompt(0, 5), image_prompt(1, 9), image_prompt(2, 7)]
    expected = [greedy_without_cache(model, prompt, 3) for prompt in prompts]
    assert len({tuple(block) for chunk in expected for block in chunk}) > 3
    for order in ("parallel", "block", "token"):
        assert decode_action_chunk(model, prompts, 3, order=order).tolist() == expected


def test_image_decoding_equals_decoding_without_cache() -> None:
    model = small_model()
    prompts = [image_prompt(3, 6), image_prompt(4, 4)]
    found = decode_image(model, prompts, rows=3, columns=2, pixels=64)
    size = grid_size_token(64)
    for prompt, codes in zip(prompts, found, strict=True):
        tokens = [*prompt, IMAGE_START, size, size]
        for number, code in enumerate(codes.reshape(-1)):
            with torch.no_grad():
                logits = model(*whole(tokens, model.config))[0, -1, IMAGE_CODE_START:IMAGE_CODE_END]
            assert int(logits.argmax()) == code
            tokens.append(int(code) + IMAGE_CODE_START)
            if number % 2:
                tokens.append(IMAGE_NEW_LINE)
    assert found.max() >= 16
    assert decode_image(model, prompts, rows=3, columns=2, pixels=64, codebook_size=16).max() < 16


def test_a_prompt_that_does_not_fit_or_is_unknown_is_refused() -> None:
    model = small_model()
    with pytest.raises(InputError, match="max_positions is 256"):
        decode_action_chunk(model, [image_prompt(0, 235)], 3)
    with pytest.raises(InputError, match="ids below 16384"):
        decode_action_chunk(model, [[0, 16_384]], 3)
