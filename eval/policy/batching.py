"""Decoding for several environments at once without a bit of one depending on the others.

Kernels may sum in another order for another number of rows, or for another place of a row among them, and
then the last bit of a logit depends on who else happens to wait for the policy. So before a width of
prompts is decoded for the first time, copies of one prompt are decoded in batches of several sizes and
compared bit by bit. Sizes that agree are used; a batch that lies between two of them is filled up with
copies. Prompts are padded to a multiple of tokens that depends on their own length alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data.tokens.image import ImageTokenizer
from data.tokens.vocabulary import ACTION_BLOCK_LENGTH, ACTION_END, ACTION_START
from pretrain.model.decoding_session import DecodingSession
from pretrain.model.generate import Order, decode_action_chunk
from pretrain.model.transformer import Transformer

_WIDTH = 64  # tokens; prompts of the same multiple share a batch


def agreeing_sizes(run: Callable[[int], NDArray], most: int) -> tuple[int, ...]:
    """Batch sizes whose rows are the same to the last bit.

    Args:
        run: Gives the outputs [n, ...] for n copies of one input.
        most: Largest size wanted.

    Returns:
        Powers of two from 1 up to `most` (at least) where all agree with one another; else the largest of
        them alone where its rows agree; else only 1.
    """
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(2 * sizes[-1])
    outputs = [run(size) for size in sizes]
    alone, full = outputs[0][0], outputs[-1]
    if all(np.array_equal(row, alone) for rows in outputs for row in rows):
        return tuple(sizes)
    if all(np.array_equal(row, full[0]) for row in full):
        return (sizes[-1],)
    return (1,)


def batches(count: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """How `count` rows are cut: (rows, size of the batch that they are filled up to)."""
    cut = []
    while count:
        size = next((size for size in sizes if size >= count), sizes[-1])
        rows = min(count, size)
        cut.append((rows, size))
        count -= rows
    return cut


class ChunkDecoder:
    """Decodes action chunks for many prompts; each as it would be decoded alone.

    Args:
        network: The transformer.
        chunk: K, actions in a chunk.
        most: Most prompts in a batch.
        order: Of the tokens, as in `decode_action_chunk`; all give the same bins.
    """

    def __init__(self, network: Transformer, chunk: int, most: int, order: Order = "parallel") -> None:
        self._network, self._chunk, self._most = network, chunk, most
        self._order: Order = order
        self._sizes: dict[int, tuple[int, ...]] = {}  # by width of the prompts

    def decode(self, prompts: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
        """Bins [B, K, 7] of B prompts [S].

        Raises:
            InputError: As `decode_action_chunk`.
        """
        by_width: dict[int, list[int]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            by_width[self._width(len(prompt))].append(number)
        bins: dict[int, NDArray[np.int64]] = {}
        for width, numbers in by_width.items():
            for rows, size in batches(len(numbers), self._agreeing(width, prompts[numbers[0]])):
                chosen, numbers = numbers[:rows], numbers[rows:]
                filled = [prompts[number] for number in chosen] + [prompts[chosen[0]]] * (size - rows)
                decoded = decode_action_chunk(
                    self._network, filled, self._chunk, order=self._order, width=width
                )
                bins |= dict(zip(chosen, decoded[:rows], strict=True))
        return np.stack([bins[number] for number in range(len(prompts))])

    def _width(self, length: int) -> int:
        """Tokens that a prompt is padded to."""
        most = self._network.config.max_positions - self._chunk * ACTION_BLOCK_LENGTH
        return max(length, min(-(-length // _WIDTH) * _WIDTH, most))

    def _agreeing(self, width: int, prompt: NDArray[np.integer]) -> tuple[int, ...]:
        if width not in self._sizes:
            self._sizes[width] = agreeing_sizes(lambda n: self._logits([prompt] * n, width), self._most)
        return self._sizes[width]

    @torch.inference_mode()
    def _logits(self, prompts: Sequence[NDArray[np.integer]], width: int) -> NDArray[np.float32]:
        """Logits [B, K, N] after the first token of each action block, as float32."""
        blocks = np.arange(1, self._chunk + 1).repeat(ACTION_BLOCK_LENGTH)
        session = DecodingSession(self._network, prompts, blocks, largest=ACTION_END, width=width)
        start = torch.full((1, self._chunk), ACTION_START, device=session.device)
        hidden = session.forward(start, slice(0, len(blocks), ACTION_BLOCK_LENGTH))
        return session.logits(hidden, ACTION_START, ACTION_END).float().cpu().numpy()


class FrameEncoder:
    """Encodes frames for many environments; each as it would be encoded alone.

    Args:
        tokenizer: The image tokenizer.
        most: Most frames in a batch.
    """

    def __init__(self, tokenizer: ImageTokenizer, most: int) -> None:
        self._tokenizer, self._most = tokenizer, most
        self._sizes: tuple[int, ...] | None = None

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Frames uint8 [N, H, W, 3] -> codes uint16 [N, R, C]."""
        if self._sizes is None:
            first = frames[:1]
            self._sizes = agreeing_sizes(
                lambda n: self._tokenizer.encode(np.repeat(first, n, axis=0)), self._most
            )
        codes, begin = [], 0
        for rows, size in batches(len(frames), self._sizes):
            part = frames[begin : begin + rows]
            filled = np.concatenate([part, np.repeat(part[:1], size - rows, axis=0)])
            codes.append(self._tokenizer.encode(filled)[:rows])
            begin += rows
        return np.concatenate(codes)
