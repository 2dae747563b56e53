"""Decoding and encoding in batches, with results that do not depend on the batch.

Kernels may sum in another order for another number of rows, or for another position of a row among them; then
the last bit of a logit, or of an action of the action head, depends on which other environments happen to
wait for the policy. So before prompts of a width are decoded for the first time, copies of one prompt are
decoded in batches of several sizes and compared bit by bit. Sizes that agree are used; a batch between two of
them is filled up with copies. The length that a prompt is padded to depends on its own length alone. This
holds in fp32 and in bf16 alike: what is compared is the output of the network's own kernels.
"""

from __future__ import annotations

import abc
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from data.tokens.image import ImageTokenizer
from data.tokens.vocabulary import (
    ACTION_BIN_END,
    ACTION_BIN_START,
    ACTION_DIM,
    block_length,
)
from pretrain.model.decoding_session import DecodingSession
from pretrain.model.generate import Order, chunk_answer, decode_with_entropy
from pretrain.model.generate_continuous import predict_actions
from pretrain.model.transformer import Transformer

_WIDTH = 64  # tokens; prompts padded to the same multiple share a batch


def invariant_batch_sizes(run: Callable[[int], NDArray], max_size: int) -> tuple[int, ...]:
    """Batch sizes whose rows are equal to the last bit.

    Args:
        run: Gives the outputs [n, ...] for n copies of one input.
        max_size: Largest size needed.

    Returns:
        Powers of two from 1 up to `max_size` (at least) where all agree with one another; else the largest of
        them alone where its rows agree; else only 1.
    """
    sizes = [1]
    while sizes[-1] < max_size:
        sizes.append(2 * sizes[-1])
    outputs = [run(size) for size in sizes]
    alone, full = outputs[0][0], outputs[-1]
    if all(np.array_equal(row, alone) for rows in outputs for row in rows):
        return tuple(sizes)
    if all(np.array_equal(row, full[0]) for row in full):
        return (sizes[-1],)
    return (1,)


def split_into_batches(count: int, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Split `count` rows into batches: (rows, size that they are filled up to) of each."""
    batches = []
    while count:
        size = next((size for size in sizes if size >= count), sizes[-1])
        rows = min(count, size)
        batches.append((rows, size))
        count -= rows
    return batches


Prompts = Sequence[NDArray[np.integer]]


class Decoded(NamedTuple):
    """Decoded chunks of B prompts.

    Attributes:
        chunks: [B, K, D].
        entropy: Entropy in nats of the distribution of each number, fp32 [B, K, D]; None: not asked for, or
            the decoder has no distributions.
    """

    chunks: NDArray[Any]
    entropy: NDArray[np.float32] | None


class BatchInvariantDecoder(abc.ABC):
    """Decodes action chunks for many prompts, each as it would be decoded alone.

    Args:
        network: The transformer.
        answer: Tokens of the answer, for which a prompt leaves room.
        max_batch: Maximum number of prompts in a batch.
    """

    def __init__(self, network: Transformer, answer: int, max_batch: int) -> None:
        self._network, self._max_batch = network, max_batch
        self._longest = network.config.max_positions - answer  # tokens of a prompt
        self._sizes: dict[int, tuple[int, ...]] = {}  # by width of the prompts

    @abc.abstractmethod
    def decode_batch(self, prompts: Prompts, width: int, entropy: bool = False) -> Decoded:
        """Chunks of B prompts [S], padded to `width` tokens, in one batch."""

    @abc.abstractmethod
    def probe(self, prompts: Prompts, width: int) -> NDArray[np.float32]:
        """Numbers [B, ...] by which batches of several sizes are compared, bit by bit."""

    def decode(self, prompts: Prompts) -> NDArray[Any]:
        """Chunks [B, K, D] of B prompts [S], as `decode_batch` gives them.

        Raises:
            InputError: As `decode_batch`.
        """
        return self.decode_with_entropy(prompts, entropy=False).chunks

    def decode_with_entropy(self, prompts: Prompts, entropy: bool = True) -> Decoded:
        """The same chunks, to the bit, and the entropy of their numbers where a decoder has it.

        Raises:
            InputError: As `decode_batch`.
        """
        by_width: dict[int, list[int]] = defaultdict(list)
        for number, prompt in enumerate(prompts):
            by_width[self._width(len(prompt))].append(number)
        chunks: dict[int, NDArray[Any]] = {}
        entropies: dict[int, NDArray[np.float32]] = {}
        for width, numbers in by_width.items():
            sizes = self._batch_sizes(width, prompts[numbers[0]])
            for rows, size in split_into_batches(len(numbers), sizes):
                chosen, numbers = numbers[:rows], numbers[rows:]
                filled = [prompts[number] for number in chosen] + [prompts[chosen[0]]] * (size - rows)
                decoded = self.decode_batch(filled, width, entropy)
                chunks |= dict(zip(chosen, decoded.chunks[:rows], strict=True))
                if decoded.entropy is not None:
                    entropies |= dict(zip(chosen, decoded.entropy[:rows], strict=True))
        order = range(len(prompts))
        spread = np.stack([entropies[number] for number in order]) if entropies else None
        return Decoded(np.stack([chunks[number] for number in order]), spread)

    def _width(self, length: int) -> int:
        """Number of tokens that a prompt is padded to."""
        return max(length, min(-(-length // _WIDTH) * _WIDTH, self._longest))

    def _batch_sizes(self, width: int, prompt: NDArray[np.integer]) -> tuple[int, ...]:
        if width not in self._sizes:
            self._sizes[width] = invariant_batch_sizes(
                lambda n: self.probe([prompt] * n, width), self._max_batch
            )
        return self._sizes[width]


class DiscreteDecoder(BatchInvariantDecoder):
    """Chunks as bins int64 [B, K, D], decoded as tokens.

    Args:
        network: The transformer.
        chunk: K, actions in a chunk.
        max_batch: Maximum number of prompts in a batch.
        order: Order of the tokens, as in `decode_action_chunk`.
        action_dim: D, numbers of an action.
        given: Bins of dimensions that are not decoded, as in `decode_action_chunk`.
    """

    def __init__(
        self,
        network: Transformer,
        chunk: int,
        max_batch: int,
        order: Order = "parallel",
        action_dim: int = ACTION_DIM,
        given: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(network, chunk * block_length(action_dim), max_batch)
        self._chunk, self._action_dim, self._given = chunk, action_dim, given
        self._order: Order = order

    def decode_batch(self, prompts: Prompts, width: int, entropy: bool = False) -> Decoded:
        """Bins and their entropy, as `decode_with_entropy`."""
        bins, spread = decode_with_entropy(
            self._network,
            prompts,
            self._chunk,
            order=self._order,
            width=width,
            action_dim=self._action_dim,
            given=self._given,
            entropy=entropy,
        )
        return Decoded(bins, spread)

    @torch.inference_mode()
    def probe(self, prompts: Prompts, width: int) -> NDArray[np.float32]:
        """Logits [B, K, N] of the first bin of each action block, by which it is chosen."""
        answer = chunk_answer(self._chunk, self._action_dim, self._given or {})
        with DecodingSession(self._network, prompts, answer, width) as session:
            hidden = session.forward(range(0, len(answer.tokens), block_length(self._action_dim)))
            return session.logits(hidden, ACTION_BIN_START, ACTION_BIN_END).cpu().numpy()


class ContinuousDecoder(BatchInvariantDecoder):
    """Chunks in normalised units, float32 [B, K, D] of the network's action head.

    Args:
        network: The transformer, with an action head.
        max_batch: Maximum number of prompts in a batch.
    """

    def __init__(self, network: Transformer, max_batch: int) -> None:
        super().__init__(network, 0, max_batch)

    def decode_batch(self, prompts: Prompts, width: int, entropy: bool = False) -> Decoded:
        """As `predict_actions`; a head predicts numbers, of which there is no distribution."""
        return Decoded(predict_actions(self._network, prompts, width=width), None)

    def probe(self, prompts: Prompts, width: int) -> NDArray[np.float32]:
        """The actions themselves: nothing is rounded to bins."""
        return self.decode_batch(prompts, width).chunks


class BatchInvariantEncoder:
    """Encodes frames of many environments, each as it would be encoded alone.

    Args:
        tokenizer: The image tokenizer.
        max_batch: Maximum number of frames in a batch.
    """

    def __init__(self, tokenizer: ImageTokenizer, max_batch: int) -> None:
        self._tokenizer, self._max_batch = tokenizer, max_batch
        self._sizes: tuple[int, ...] | None = None

    def encode(self, frames: NDArray[np.uint8]) -> NDArray[np.uint16]:
        """Frames uint8 [N, H, W, 3] -> codes uint16 [N, R, C]."""
        if self._sizes is None:
            first = frames[:1]
            self._sizes = invariant_batch_sizes(
                lambda n: self._tokenizer.encode(np.repeat(first, n, axis=0)), self._max_batch
            )
        codes, begin = [], 0
        for rows, size in split_into_batches(len(frames), self._sizes):
            part = frames[begin : begin + rows]
            filled = np.concatenate([part, np.repeat(part[:1], size - rows, axis=0)])
            codes.append(self._tokenizer.encode(filled)[:rows])
            begin += rows
        return np.concatenate(codes)
