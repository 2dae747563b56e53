"""A batch of prompts that the network has read, and what it reads after them."""

from __future__ import annotations

from collections.abc import Sequence

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


class Reader:
    """Prompts of different lengths, read at once; their answers grow behind them token by token.

    Everything that the host decides is decided here, before the first answer token: reading and choosing
    only queue work on the device and never wait for it.

    Args:
        model: Plain (not tensor-parallel) transformer, in evaluation mode.
        prompts: Token ids [S] of each of B prompts.
        blocks: Of every token of the written answer, int64 [A]: number of its action block from 1 on, or 0.
            Without action blocks the answer is an image, so the prompt's actions stand before the last one.
        largest: Largest token id of the answers.
        width: Tokens that the prompts are padded to, at least; 0: to the longest.

    Attributes:
        device: Where the model is.
        batch: B, prompts.

    Raises:
        InputError: No prompt, an empty one, prompt and answer longer than the model's positions, or an id
            that is unknown to it.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[ArrayLike],
        blocks: NDArray[np.int64],
        largest: int,
        width: int = 0,
    ) -> None:
        rows = _checked(model, prompts, len(blocks), largest)
        lengths = [len(row) for row in rows]
        self._model = model
        self.batch = len(rows)
        self.device = model.lm_head.weight.device
        shape = (len(rows), max(width, *lengths))
        tokens = np.full(shape, PADDING, np.int64)
        segments, prompt_blocks = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for number, row in enumerate(rows):
            tokens[number, : len(row)] = row
            segments[number, : len(row)], prompt_blocks[number, : len(row)] = mask_vectors(row)
        if not blocks.any():
            prompt_blocks = -np.abs(prompt_blocks)
        unused = int(prompt_blocks.max())  # answer blocks are numbered on from those of the prompts
        self._blocks = torch.from_numpy(np.where(blocks > 0, blocks + unused, 0)).to(self.device)
        ends = torch.tensor(lengths, device=self.device)[:, None]
        self._positions = ends + torch.arange(len(blocks), device=self.device)
        capacity = shape[1] + len(blocks)
        self._cache = DecodingCache(model.config.layers, self.batch, capacity, self.device)
        model.prefill(
            torch.from_numpy(tokens), torch.from_numpy(segments), torch.from_numpy(prompt_blocks), self._cache
        )

    def read(self, tokens: Tensor, places: slice) -> Tensor:
        """Hidden states [B, Q, H] of answer tokens [B, Q] (or [1, Q]: all alike) at their places in it."""
        tokens = tokens.expand(self.batch, -1)
        blocks = self._blocks[places].expand_as(tokens)
        positions = self._positions[:, places]
        return self._model.decode(tokens, positions, torch.ones_like(tokens), blocks, self._cache)

    def logits(self, hidden: Tensor, first: int, end: int) -> Tensor:
        """Logits of the ids in [first, end) after each hidden state: [B, Q, H] -> [B, Q, end - first]."""
        return F.linear(hidden, self._model.lm_head.weight[first:end])


def _checked(
    model: Transformer, prompts: Sequence[ArrayLike], answer: int, largest: int
) -> list[NDArray[np.int64]]:
    """The prompts as arrays [S]."""
    known = model.config.vocabulary_size
    if largest >= known:
        raise InputError(
            f"the answer needs token ids up to {largest}, but model.vocabulary_size is {known}; use a model "
            "that was trained on this vocabulary"
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
        wrong = row[(row < 0) | (row >= known)]
        if len(wrong):
            raise InputError(
                f"{where} has token id {wrong[0]}, but the model knows ids below {known} and none below 0; "
                "use the tokenizer that it was trained with"
            )
        rows.append(row.astype(np.int64))
    return rows
