"""A batch of prompts in the key/value cache, and the answers that are decoded after them.

The answers' ids are in a buffer, the forced ones from the start. A decoding step is a function of two short
vectors: the offsets of its tokens in the answer, and the slots of the cache where their keys and values go.
It reads its tokens, runs them through the network, chooses the tokens that follow them, and writes those.
Running a step twice leaves the same behind as running it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.distributions import Categorical

from pretrain.model.attention.host import on_device
from pretrain.model.decoding.buffers import BufferShape, pool_of
from pretrain.model.decoding.graphs import GraphedStep, Graphs
from pretrain.model.decoding.prompts import padded_prompts, rounded_up
from pretrain.model.sampling import Sampling
from pretrain.model.transformer import Transformer

GraphChoice = Graphs | Literal["auto", "off"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of an answer of A tokens before it is decoded, the same for all prompts.

    Attributes:
        tokens: int64 [A], ids of the forced tokens; any id where one is chosen.
        blocks: int64 [A], number of each token's action block from 1 on, or 0. Without action blocks the
            answer is an image, so the prompt's actions precede the last image.
        places: int64 [A], for a token after which one is chosen: the number of that among the chosen ones.
    """

    tokens: NDArray[np.int64]
    blocks: NDArray[np.int64]
    places: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Choice:
    """How a step chooses ids: of [first, end), after the last `count` of its tokens.

    Attributes:
        first: First id to choose among.
        end: One more than the last.
        count: Tokens of the step, from its end, after which one is chosen.
        sampling: Temperature and top_k; seed and environments are in the noise.
        guidance: Scale of classifier-free guidance: the second half of the batch are the unconditional
            prompts, whose answers hold the same tokens. None: without.
        entropy: Keep the entropy of the distributions too; without guidance.
    """

    first: int
    end: int
    count: int
    sampling: Sampling
    guidance: float | None = None
    entropy: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass of Q answer tokens.

    Attributes:
        offsets: int64 [Q], of these tokens in the written answer.
        choice: How the tokens at `offsets` + 1 are chosen; None: they are not.
    """

    offsets: NDArray[np.int64]
    choice: Choice | None = None


class DecodingSession:
    """Prompts of different lengths, prefilled at once, and the steps that decode their answers.

    All decisions of the host are made beforehand: steps only queue kernels on the device and never wait for
    it. Used as a context, the session leaves its buffers to the next one of the same shape.

    Args:
        model: Plain (not tensor-parallel) transformer, in evaluation mode. On a GPU its steps are captured as
            CUDA graphs: its weights have to stay where they are.
        prompts: Token ids [S] of each of B prompts.
        answer: What is known of their answers.
        width: Minimum width in tokens that the prompts are padded to; 0: the longest prompt.
        noise: fp32 [B', P, N] on the device, from `Sampling.noise`; None: greedy.
        graphs: `auto` captures steps where the model is on a GPU, `off` nowhere.

    Attributes:
        device: Of the model.
        batch: B, prompts.

    Raises:
        InputError: No prompt, an empty one, prompt and answer longer than the model's positions, or an id
            outside its vocabulary.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[ArrayLike],
        answer: Answer,
        width: int = 0,
        noise: Tensor | None = None,
        graphs: GraphChoice = "auto",
    ) -> None:
        size, weight = len(answer.tokens), model.lm_head.weight
        padded = padded_prompts(model, prompts, size, int(answer.tokens.max()), width)
        prompt_blocks = padded.blocks if answer.blocks.any() else -np.abs(padded.blocks)
        last_block = int(prompt_blocks.max())  # answer blocks continue the numbers of the prompts'
        blocks = np.where(answer.blocks > 0, answer.blocks + last_block, 0)
        self._model, self._pool = model, pool_of(model)
        self.batch, self.device = len(padded.tokens), weight.device
        self._used = padded.tokens.shape[1]  # slots of the cache
        capacity = rounded_up(self._used + size)
        noise_shape = None if noise is None else tuple(noise.shape)
        shape = BufferShape(self.batch, size, capacity, noise_shape, self.device, weight.dtype)
        chosen = self._pool.graphs(self.device) if graphs == "auto" else graphs
        self._graphs = chosen if isinstance(chosen, Graphs) else None
        self._buffers = self._pool.take(model, shape, captured=self._graphs is not None)
        for buffer, values in (
            (self._buffers.tokens, answer.tokens),
            (self._buffers.blocks, blocks),
            (self._buffers.places, answer.places),
            (self._buffers.ends, padded.lengths[:, None]),
        ):
            buffer.copy_(on_device(values, self.device))
        if noise is not None and self._buffers.noise is not None:
            self._buffers.noise.copy_(noise)
        model.prefill(
            torch.from_numpy(padded.tokens),
            torch.from_numpy(padded.segments),
            torch.from_numpy(prompt_blocks),
            self._buffers.cache,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the buffers back; the session and its tokens are not to be used afterwards."""
        if error is None:
            self._pool.give(self._buffers)

    @property
    def tokens(self) -> Tensor:
        """Ids of the answers, int64 [B, A]: a buffer."""
        return self._buffers.tokens

    @property
    def entropy(self) -> Tensor:
        """Entropy in nats of what each token was chosen from, fp32 [B, A]: a buffer; see `Choice.entropy`."""
        return self._buffers.entropy

    @torch.no_grad()
    def run(self, steps: Sequence[Step]) -> None:
        """Run steps one after the other; what they choose is in `tokens`."""
        inputs = self._inputs([step.offsets for step in steps])
        for step, own in zip(steps, inputs.split([len(step.offsets) for step in steps], dim=1), strict=True):
            self._used += len(step.offsets)
            if self._graphs is not None:
                self._captured(self._graphs, step)(partial(self._step, choice=step.choice), own)
            else:
                self._step(own, step.choice, self._used)

    @torch.no_grad()
    def forward(self, offsets: ArrayLike) -> Tensor:
        """Hidden states [B, Q, H] of the answer tokens at offsets [Q], whose keys and values are stored.

        Not captured; of the shapes of `run`, whose kernels may sum in another order for others.
        """
        inputs = self._inputs([np.asarray(offsets, np.int64)])
        self._used += inputs.shape[1]
        return self._hidden(inputs[0], inputs[1], self._used if self._graphs is None else None)

    def logits(self, hidden: Tensor, first: int, end: int) -> Tensor:
        """Logits of the ids in [first, end): hidden states [B, Q, H] -> fp32 [B, Q, end - first].

        Computed in fp32: in bf16 the likeliest of 256 or 8,192 ids are often rounded to the same number.
        """
        return F.linear(hidden.float(), self._model.lm_head.weight[first:end].float())

    def _inputs(self, offsets: Sequence[NDArray[np.int64]]) -> Tensor:
        """Offsets of all tokens of the next steps, and their slots: int64 [2, Q] on the device."""
        flat = np.concatenate(offsets)
        return on_device(np.stack([flat, self._used + np.arange(len(flat))]), self.device)

    def _captured(self, graphs: Graphs, step: Step) -> GraphedStep:
        """The captured step of this shape and choice on these buffers; a new one is captured when called."""
        key = (graphs, len(step.offsets), step.choice)
        if key not in self._buffers.steps:
            self._buffers.steps[key] = GraphedStep((2, len(step.offsets)), self.device, graphs)
        return self._buffers.steps[key]

    def _hidden(self, offsets: Tensor, slots: Tensor, end: int | None) -> Tensor:
        buffers = self._buffers
        tokens = buffers.tokens.index_select(1, offsets)
        blocks = buffers.blocks.index_select(0, offsets).expand_as(tokens)
        return self._model.decode(tokens, buffers.ends + offsets, blocks, slots, buffers.cache, end)

    def _step(self, inputs: Tensor, choice: Choice | None, end: int | None = None) -> None:
        """Run the tokens at offsets and slots int64 [2, Q] and write the tokens that are chosen after them.

        Args:
            inputs: Offsets and slots.
            choice: How they are chosen.
            end: Slots in use; None, for a step that is captured: all are read.
        """
        offsets = inputs[0]
        hidden = self._hidden(offsets, inputs[1], end)
        if choice is None:
            return
        last, buffers = offsets[-choice.count :], self._buffers
        logits = self.logits(hidden[:, -choice.count :], choice.first, choice.end)
        if choice.guidance is not None:
            conditional, unconditional = logits.chunk(2)
            logits = torch.lerp(unconditional, conditional, choice.guidance)
        if choice.entropy:
            buffers.entropy.index_copy_(
                1, last + 1, Categorical(logits=logits, validate_args=False).entropy()
            )
        noise = buffers.noise
        if noise is not None:
            noise = noise.index_select(1, buffers.places.index_select(0, last))
        chosen = choice.sampling.choose(logits, noise) + choice.first
        buffers.tokens.index_copy_(1, last + 1, chosen.repeat(self.batch // len(chosen), 1))
