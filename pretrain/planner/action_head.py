"""Parameters, operations and memory of the continuous action head, by formula.

P prompt tokens of N samples, Q = D K queries of each, R = P + N Q rows, H hidden, W = H / 4 width of the
head. The second encoder layer projects all rows, and computes the rest for the queries alone.
"""

from __future__ import annotations

from pretrain.model.action_head import BLOCKS, FFN_FACTOR, LAYERS, head_width
from pretrain.model.config import ModelConfig

_PROJECTIONS = 4  # matrices W x W of attention: queries, keys, values, output


def head_parameters(model: ModelConfig) -> int:
    """Number of parameters of the head, the same on every tensor-parallel rank; 0 without one."""
    if model.action_head is None:
        return 0
    width, numbers = head_width(model), model.action_head.action_dim
    queries = model.action_head.time_horizon * numbers * model.hidden_size
    layer = (_PROJECTIONS + 2 * FFN_FACTOR) * width**2 + (_PROJECTIONS + FFN_FACTOR + 1 + 4) * width
    outputs = numbers * width
    mlp = 2 * outputs + (outputs + 1) * width + BLOCKS * (width**2 + 3 * width) + 2 * width
    mlp += (width + 1) * numbers
    return queries + (model.hidden_size + 1) * width + LAYERS * layer + 2 * width + mlp


def head_flops(model: ModelConfig, prompts: int, samples: int) -> float:
    """Floating-point operations of the head's forward pass; 0 without a head or a sample.

    Args:
        model: The network.
        prompts: P; the prompts count as equally long.
        samples: N.
    """
    if model.action_head is None or not samples:
        return 0.0
    width, horizon = head_width(model), model.action_head.time_horizon
    numbers = model.action_head.action_dim
    queries = samples * horizon * numbers
    rows = prompts + queries
    keys_and_queries = _PROJECTIONS - 1
    rest = 1 + 2 * FFN_FACTOR  # output projection and feed-forward, in matrices W x W
    layers = width**2 * (LAYERS * keys_and_queries * rows + rest * ((LAYERS - 1) * rows + queries))
    attention = 2 * width * (rows / samples) * ((LAYERS - 1) * rows + queries)
    mlp = samples * horizon * (width**2 * (numbers + BLOCKS) + width * numbers)
    return 2.0 * (model.hidden_size * width * rows + layers + attention + mlp)


def head_activation_bytes(model: ModelConfig, tokens: int, value_bytes: int, dropout_bytes: int) -> float:
    """Bytes that the head saves for its backward pass where all tokens are prompts, at most; 0 without one.

    In units of the width, a row saves 1 projection; in the first layer 3 of keys, values and queries, 2 of
    attention's mixture, 4 before and after the norms, and the inner feed-forward (with dropout twice); in the
    second 3 of keys, values and queries.

    Args:
        model: The network.
        tokens: T, of a micro-batch.
        value_bytes: Of a value.
        dropout_bytes: Of an element of dropout's mask.
    """
    if model.action_head is None:
        return 0.0
    width = head_width(model)
    drops = model.action_head.dropout > 0
    values = model.hidden_size + width * (1 + (3 + 2 + 4 + FFN_FACTOR * (1 + drops)) + 3)
    dropped = width * (2 + FFN_FACTOR) * drops
    return tokens * (value_bytes * values + dropout_bytes * dropped)
