"""Greedy decoding of action chunks and of images, batched, with a cache of keys and values.

An action chunk is decoded *in parallel*: under the action mask the K action blocks do not see one
another, so all of them advance together. After the prompt is read, seven steps of K tokens give the
chunk, whatever K; block j keeps the positions that it would have in the written sequence (9 j on), and
the result equals decoding the blocks one after the other.

Structure tokens (starts, ends, grid size, line breaks) are known beforehand and forced; bins and codes
are chosen among their own ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data.errors import InputError
from data.tokens.vocabulary import (
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
    PADDING,
    grid_size_token,
)
from pretrain.model.cache import DecodingCache
from pretrain.model.mask import mask_vectors
from pretrain.model.transformer import Transformer


@torch.inference_mode()
def decode_action_chunk(
    model: Transformer, prompts: Sequence[ArrayLike], chunk: int, parallel: bool = True
) -> NDArray[np.int64]:
    """Greedy action bins of the next `chunk` actions.

    Args:
        model: Plain (not tensor-parallel) transformer, in evaluation mode.
        prompts: Token ids [S] of each of B action prompts (they may differ in length).
        chunk: K, actions to decode.
        parallel: Decode all blocks at once; false decodes them in turn, with the same result. A model
            without the action mask always decodes in turn, since its blocks see one another.

    Returns:
        Bin ids int64 [B, K, 7].

    Raises:
        InputError: Prompt and answer are longer than the model's positions, or an id is unknown to it.
    """
    reader = _Reader(model, prompts, answer=chunk * ACTION_BLOCK_LENGTH)
    groups = [np.arange(chunk)] if parallel and model.config.action_mask else np.arange(chunk)[:, None]
    decoded = [_decode_blocks(reader, torch.as_tensor(group, device=reader.device)) for group in groups]
    return torch.cat(decoded, dim=1).cpu().numpy()


def _decode_blocks(reader: _Reader, numbers: Tensor) -> Tensor:
    """Bins [B, len(numbers), 7] of the answer blocks with these numbers, all advancing together."""
    blocks = (reader.first_block + numbers).expand(reader.batch, -1)
    begins = reader.lengths[:, None] + numbers * ACTION_BLOCK_LENGTH
    token = torch.full_like(blocks, ACTION_START)
    bins: list[Tensor] = []
    for place in range(ACTION_DIM):
        hidden = reader.read(token, begins + place, blocks)
        token = reader.choose(hidden, ACTION_BIN_START, ACTION_BIN_END)
        bins.append(token)
    if not reader.independent_blocks:  # later blocks see the rest of this one
        for place, last in ((ACTION_DIM, token), (ACTION_DIM + 1, torch.full_like(token, ACTION_END))):
            reader.read(last, begins + place, blocks)
    return torch.stack(bins, dim=2)


@torch.inference_mode()
def decode_image(
    model: Transformer,
    prompts: Sequence[ArrayLike],
    rows: int,
    columns: int,
    pixels: int,
    codebook_size: int = IMAGE_CODE_COUNT,
) -> NDArray[np.uint16]:
    """Greedy image codes of the next frame.

    Args:
        model: Plain transformer, in evaluation mode.
        prompts: Token ids [S] of each of B world prompts.
        rows: R, rows of image codes.
        columns: C, columns of image codes.
        pixels: Side of the image, which the grid tokens announce.
        codebook_size: Entries of the image tokenizer; only their ids are chosen among.

    Returns:
        Codes uint16 [B, R, C].

    Raises:
        InputError: As `decode_action_chunk`.
    """
    reader = _Reader(model, prompts, answer=3 + rows * (columns + 1))
    size = grid_size_token(pixels)
    place = 0

    def read(*tokens: int | Tensor) -> Tensor:
        nonlocal place
        columns_of_ids = [
            torch.as_tensor(token, device=reader.device).expand(reader.batch) for token in tokens
        ]
        ids = torch.stack(columns_of_ids, dim=1)
        positions = reader.lengths[:, None] + place + torch.arange(len(tokens), device=reader.device)
        place += len(tokens)
        return reader.read(ids, positions, torch.zeros_like(ids))[:, -1:]

    codes: list[Tensor] = []
    hidden = read(IMAGE_START, size, size)
    for number in range(rows * columns):
        code = reader.choose(hidden, IMAGE_CODE_START, IMAGE_CODE_START + codebook_size)[:, 0]
        codes.append(code - IMAGE_CODE_START)
        if number + 1 < rows * columns:
            ends_row = (number + 1) % columns == 0
            hidden = read(code, IMAGE_NEW_LINE) if ends_row else read(code)
    return torch.stack(codes, dim=1).reshape(-1, rows, columns).cpu().numpy().astype(np.uint16)


class _Reader:
    """A batch of prompts that has been read, and what is read after it.

    Attributes:
        device: Where the model is.
        batch: B, prompts.
        lengths: int64 [B], tokens of each prompt.
        first_block: Block id of the first answer block.
        independent_blocks: Whether the model's action blocks are hidden from one another.
    """

    def __init__(self, model: Transformer, prompts: Sequence[ArrayLike], answer: int) -> None:
        """Read the prompts; `answer` is how many tokens may follow each."""
        rows = [np.asarray(prompt, np.int64) for prompt in prompts]
        self._check(model, rows, answer)
        self._model = model
        self.batch = len(rows)
        self.independent_blocks = model.config.action_mask
        self.device = model.lm_head.weight.device
        self.lengths = torch.tensor([len(row) for row in rows], device=self.device)
        shape = (len(rows), int(self.lengths.max()))
        tokens = np.full(shape, PADDING, np.int64)
        segments, blocks = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
            segments[number, : len(row)], blocks[number, : len(row)] = mask_vectors(row)
        self.first_block = int(blocks.max()) + 1
        positions = torch.arange(shape[1], device=self.device).expand(shape)
        self._cache = DecodingCache.empty(model.config.layers, self.batch, shape[1] + answer, self.device)
        model.decode(
            torch.as_tensor(tokens, device=self.device),
            positions,
            torch.as_tensor(segments, device=self.device),
            torch.as_tensor(blocks, device=self.device),
            self._cache,
        )

    def read(self, tokens: Tensor, positions: Tensor, blocks: Tensor) -> Tensor:
        """Hidden states [B, Q, H] of new tokens [B, Q]."""
        return self._model.decode(tokens, positions, torch.ones_like(tokens), blocks, self._cache)

    def choose(self, hidden: Tensor, first: int, end: int) -> Tensor:
        """The likeliest id in [first, end) after each hidden state: [B, Q, H] -> [B, Q]."""
        logits = torch.nn.functional.linear(hidden, self._model.lm_head.weight[first:end])
        return logits.argmax(dim=-1) + first

    @staticmethod
    def _check(model: Transformer, rows: list[NDArray[np.int64]], answer: int) -> None:
        longest = max(len(row) for row in rows) + answer
        if longest > model.config.max_positions:
            raise InputError(
                f"prompt and answer take {longest} positions, but model.max_positions is "
                f"{model.config.max_positions}; shorten the history or the chunk"
            )
        largest = max(int(row.max()) for row in rows)
        if largest >= model.config.vocabulary_size:
            raise InputError(
                f"token id {largest} in a prompt, but the model knows ids below "
                f"{model.config.vocabulary_size}; use the tokenizer that it was trained with"
            )
