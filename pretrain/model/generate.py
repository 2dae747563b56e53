"""Decoding of action chunks, batched, with a cache of keys and values.

An action chunk is decoded *in parallel*: under the action mask the K action blocks do not see one
another, so all of them advance together. After the prompt, D steps of K tokens give the chunk of actions of
D numbers, whatever K; block j has the positions of the written sequence (from (D + 2) j on), and the result
equals decoding the blocks one after the other.

Structure tokens (starts and ends) are forced; bins are chosen among their own ids.

The steps only queue kernels on the device; the host waits once, for the result. On a GPU each step is a CUDA
graph (`pretrain.model.decoding.graphs`): one launch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from data.errors import InputError
from data.tokens.vocabulary import (
    ACTION_BIN_COUNT,
    ACTION_BIN_END,
    ACTION_BIN_START,
    ACTION_DIM,
    ACTION_END,
    ACTION_START,
    block_length,
)
from pretrain.model.decoding_session import Answer, Choice, DecodingSession, GraphChoice, Step
from pretrain.model.sampling import GREEDY, Sampling
from pretrain.model.transformer import Transformer

Order = Literal["parallel", "block", "token"]


class DecodedChunk(NamedTuple):
    """The next K actions after each of B prompts, D numbers each.

    Attributes:
        bins: Bin ids int64 [B, K, D].
        entropy: Of the distribution over 256 bins that each was chosen from, in nats, fp32 [B, K, D]; 0 for
            a bin that is given. None: not asked for.
    """

    bins: NDArray[np.int64]
    entropy: NDArray[np.float32] | None


def decode_action_chunk(
    model: Transformer,
    prompts: Sequence[ArrayLike],
    chunk: int,
    sampling: Sampling = GREEDY,
    order: Order = "parallel",
    width: int = 0,
    action_dim: int = ACTION_DIM,
    given: Mapping[int, int] | None = None,
    graphs: GraphChoice = "auto",
) -> NDArray[np.int64]:
    """Action bins of the next `chunk` actions.

    Args:
        model: Plain (not tensor-parallel) transformer, in evaluation mode.
        prompts: Token ids [S] of each of B action prompts (they may differ in length).
        chunk: K, actions to decode.
        sampling: How bins are chosen.
        order: `parallel` advances all blocks at once; `block` decodes one block after the other; `token`
            decodes every token of the answer on its own, structure tokens too, as plain autoregressive
            generation does. All give the same bins, but for rounding: in bf16 another order of summation may
            choose another bin. A model without the action mask decodes block after block instead of in
            parallel, since its blocks attend to one another.
        width: As in `DecodingSession`.
        action_dim: D, numbers of an action.
        given: Ids of the bins of dimensions that are not decoded but written as in training: those that the
            robot does not have.
        graphs: As in `DecodingSession`.

    Returns:
        Bin ids int64 [B, K, D].

    Raises:
        InputError: chunk < 1, an unknown order, or as `DecodingSession` and `Sampling.noise`.
    """
    return decode_with_entropy(
        model, prompts, chunk, sampling, order, width, action_dim, given, graphs, entropy=False
    ).bins


@torch.inference_mode()
def decode_with_entropy(
    model: Transformer,
    prompts: Sequence[ArrayLike],
    chunk: int,
    sampling: Sampling = GREEDY,
    order: Order = "parallel",
    width: int = 0,
    action_dim: int = ACTION_DIM,
    given: Mapping[int, int] | None = None,
    graphs: GraphChoice = "auto",
    entropy: bool = True,
) -> DecodedChunk:
    """As `decode_action_chunk`, to the bit, with the entropy of each bin's distribution.

    Args:
        model: As there.
        prompts: As there.
        chunk: As there.
        sampling: As there.
        order: As there.
        width: As there.
        action_dim: As there.
        given: As there.
        graphs: As there.
        entropy: Whether the entropy is computed, from the logits that the bins are chosen by.

    Raises:
        InputError: As there.
    """
    if chunk < 1:
        raise InputError(f"chunk={chunk}: expected at least one action")
    if order not in get_args(Order):
        raise InputError(f"order={order}: expected one of {', '.join(get_args(Order))}")
    given = dict(given or {})
    device = model.lm_head.weight.device
    noise = sampling.noise(len(prompts), (chunk, action_dim), ACTION_BIN_COUNT, device)
    steps = _steps(chunk, action_dim, order, model.config.action_mask, given, sampling, entropy)
    answer = chunk_answer(chunk, action_dim, given)
    noise = None if noise is None else noise.flatten(1, 2)
    with DecodingSession(model, prompts, answer, width, noise, graphs) as session:
        session.run(steps)
        bins = _numbers(session.tokens, chunk, action_dim)
        if not entropy:
            return DecodedChunk(bins, None)
        spread = _numbers(session.entropy, chunk, action_dim)
        spread[..., list(given)] = 0.0  # not decoded: the buffer has that of an earlier answer
        return DecodedChunk(bins, spread)


def _numbers(answers: Tensor, chunk: int, action_dim: int) -> NDArray[Any]:
    """Of a buffer of answers [B, K (D + 2)] what belongs to the bins, [B, K, D], as an array of its own."""
    blocks = answers.unflatten(1, (chunk, -1))
    return blocks[..., 1 : action_dim + 1].to("cpu", copy=True).numpy()  # the next session's buffer, too


def chunk_answer(chunk: int, action_dim: int, given: Mapping[int, int]) -> Answer:
    """The written chunk, all bins missing but the given ones.

    Args:
        chunk: K, actions.
        action_dim: D, numbers of an action.
        given: As in `decode_action_chunk`.

    Returns:
        Start, D bins and end of each action: K (D + 2) tokens.
    """
    block = np.full(block_length(action_dim), ACTION_BIN_START, np.int64)
    block[0], block[-1] = ACTION_START, ACTION_END
    for dimension, bin_id in given.items():
        block[dimension + 1] = bin_id
    number, within = np.divmod(np.arange(chunk * len(block), dtype=np.int64), len(block))
    places = number * action_dim + np.minimum(within, action_dim - 1)
    return Answer(np.tile(block, chunk), number + 1, places)


def _steps(
    chunk: int,
    action_dim: int,
    order: Order,
    independent: bool,
    given: Mapping[int, int],
    sampling: Sampling,
    entropy: bool,
) -> list[Step]:
    """The forward passes of a chunk; `independent`: no block sees another."""
    length, group_size = block_length(action_dim), chunk if order == "parallel" and independent else 1
    kind = Sampling(sampling.temperature, sampling.top_k)
    choice = Choice(ACTION_BIN_START, ACTION_BIN_END, group_size, kind, entropy=entropy)
    steps: list[Step] = []
    for first in range(0, chunk, group_size):
        starts = np.arange(first, first + group_size, dtype=np.int64) * length
        if first and order == "token":
            steps += [Step(starts - 2), Step(starts - 1)]
        elif first and not independent:  # this block attends to the last bin and the end of the previous one
            steps.append(Step(starts + np.array([-2, -1])))
        steps += [Step(starts + d, None if d in given else choice) for d in range(action_dim)]
    return steps
