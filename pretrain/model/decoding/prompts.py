"""Prompts of different lengths as rows of one width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from data.errors import InputError
from data.tokens.vocabulary import PADDING
from pretrain.model.mask import mask_vectors
from pretrain.model.transformer import Transformer

_MULTIPLE = 64  # tokens


class PaddedPrompts(NamedTuple):
    """Prompts as rows of one width, padded on the right; int64 [B, S] each.

    Attributes:
        tokens: Token ids.
        segments: 1, and 0 for padding.
        blocks: Block ids.
        lengths: int64 [B], tokens of each prompt.
    """

    tokens: NDArray[np.int64]
    segments: NDArray[np.int64]
    blocks: NDArray[np.int64]
    lengths: NDArray[np.int64]


def padded_prompts(
    model: Transformer, prompts: Sequence[ArrayLike], answer: int, largest: int, width: int
) -> PaddedPrompts:
    """Check prompts and lay them side by side.

    Args:
        model: Sizes that they have to fit.
        prompts: Token ids [S] each.
        answer: Tokens that follow each of them.
        largest: Largest token id of the answers.
        width: Minimum width; 0: the longest prompt.

    Raises:
        InputError: No prompt, an empty one, prompt and answer longer than the model's positions, or an id
            outside its vocabulary.
    """
    rows = _check_prompts(model, prompts, answer, largest)
    lengths = np.array([len(row) for row in rows], np.int64)
    least = max(width, int(lengths.max()))
    shape = (len(rows), padded_width(least, model.config.max_positions, model.lm_head.weight.device))
    tokens = np.full(shape, PADDING, np.int64)
    segments, blocks = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        segments[number, : len(row)], blocks[number, : len(row)] = mask_vectors(row)
    return PaddedPrompts(tokens, segments, blocks, lengths)


def rounded_up(tokens: int) -> int:
    """The next multiple of the number of tokens by which shapes of prompts and caches differ."""
    return -(-tokens // _MULTIPLE) * _MULTIPLE


def padded_width(least: int, positions: int, device: torch.device) -> int:
    """Width of prompts of at least `least` tokens; on a GPU few widths occur, for each is compiled.

    Args:
        least: Tokens of the longest prompt, at least.
        positions: That the model has: no prompt is padded beyond.
        device: Of the model.
    """
    return max(least, min(rounded_up(least), positions)) if device.type == "cuda" else least


def _check_prompts(
    model: Transformer, prompts: Sequence[ArrayLike], answer: int, largest: int
) -> list[NDArray[np.int64]]:
    """The prompts as arrays int64 [S], or an InputError."""
    vocabulary_size = model.config.vocabulary_size
    if largest >= vocabulary_size:
        raise InputError(
            f"the answer needs token ids up to {largest}, but model.vocabulary_size is {vocabulary_size}; "
            "use a model that was trained on this vocabulary"
        )
    if not len(prompts):
        raise InputError("found no prompt, expected at least one")
    rows: list[NDArray[np.int64]] = []
    for number, prompt in enumerate(prompts):
        row = np.asarray(prompt)
        where = f"prompt {number} of {len(prompts)}"
        if not row.size:
            raise InputError(f"{where} is empty, expected at least one token")
        if row.ndim != 1 or not np.issubdtype(row.dtype, np.integer):
            raise InputError(f"{where} is {row.dtype} {list(row.shape)}, expected token ids [S]")
        if len(row) + answer > model.config.max_positions:
            raise InputError(
                f"{where} and its answer take {len(row)} + {answer} = {len(row) + answer} positions, but "
                f"model.max_positions is {model.config.max_positions}; shorten the history or the chunk"
            )
        unknown = row[(row < 0) | (row >= vocabulary_size)]
        if len(unknown):
            raise InputError(
                f"{where} has token id {unknown[0]}, expected 0 to {vocabulary_size - 1}; use "
                "the tokenizer that the model was trained with"
            )
        rows.append(row.astype(np.int64))
    return rows
