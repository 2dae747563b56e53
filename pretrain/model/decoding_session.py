"""A batch of prompts in the key/value cache, and the answers that are decoded after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data.errors import InputError
from data.tokens.vocabulary import PADDING
from pretrain.model.cache import DecodingCache
from pretrain.model.mask import mask_vectors
from pretrain.model.transformer import Transformer


class DecodingSession:
    """Prompts of different lengths, prefilled at once; their answers are appended token by token.

    All decisions of the host are made at construction: decoding steps only queue kernels on the device and
    never wait for it.

    Args:
        model: Plain (not tensor-parallel) transformer, in evaluation mode.
        prompts: Token ids [S] of each of B prompts.
        blocks: Of every token of the written answer, int64 [A]: number of its action block from 1 on, or 0.
            Without action blocks the answer is an image, so the prompt's actions precede the last image.
        largest: Largest token id of the answers.
        width: Minimum width in tokens that the prompts are padded to; 0: the longest prompt.

    Attributes:
        device: Of the model.
        batch: B, prompts.

    Raises:
        InputError: No prompt, an empty one, prompt and answer longer than the model's positions, or an id
            outside its vocabulary.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[ArrayLike],
        blocks: NDArray[np.int64],
        largest: int,
        width: int = 0,
    ) -> None:
        padded = padded_prompts(model, prompts, len(blocks), largest, width)
        tokens, prompt_blocks = padded.tokens, padded.blocks
        self._model = model
        self.batch = len(tokens)
        self.device = model.lm_head.weight.device
        if not blocks.any():
            prompt_blocks = -np.abs(prompt_blocks)
        last_block = int(prompt_blocks.max())  # answer blocks continue the numbers of the prompts'
        self._blocks = torch.from_numpy(np.where(blocks > 0, blocks + last_block, 0)).to(self.device)
        ends = torch.from_numpy(padded.lengths).to(self.device)[:, None]
        self._positions = ends + torch.arange(len(blocks), device=self.device)
        capacity = tokens.shape[1] + len(blocks)
        self._cache = DecodingCache(model.config.layers, self.batch, capacity, self.device)
        segments = torch.from_numpy(padded.segments)
        model.prefill(torch.from_numpy(tokens), segments, torch.from_numpy(prompt_blocks), self._cache)

    def forward(self, tokens: Tensor, offsets: slice) -> Tensor:
        """Append answer tokens to the cache.

        Args:
            tokens: int64 [B, Q], or [1, Q]: the same for all prompts.
            offsets: Of these Q tokens in the written answer.

        Returns:
            Their hidden states [B, Q, H].
        """
        tokens = tokens.expand(self.batch, -1)
        blocks = self._blocks[offsets].expand_as(tokens)
        positions = self._positions[:, offsets]
        return self._model.decode(tokens, positions, torch.ones_like(tokens), blocks, self._cache)

    def logits(self, hidden: Tensor, first: int, end: int) -> Tensor:
        """Logits of the ids in [first, end): hidden states [B, Q, H] -> [B, Q, end - first]."""
        return F.linear(hidden, self._model.lm_head.weight[first:end])


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
        InputError: As `DecodingSession`.
    """
    rows = _check_prompts(model, prompts, answer, largest)
    lengths = np.array([len(row) for row in rows], np.int64)
    shape = (len(rows), max(width, int(lengths.max())))
    tokens = np.full(shape, PADDING, np.int64)
    segments, blocks = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        segments[number, : len(row)], blocks[number, : len(row)] = mask_vectors(row)
    return PaddedPrompts(tokens, segments, blocks, lengths)


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
