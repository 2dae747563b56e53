"""What follows from a parameter's name: how it is sharded, decayed, and initialised."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.action_head import PREFIX as ACTION_HEAD_PREFIX
from pretrain.model.action_head import head_distribution
from pretrain.model.config import ModelConfig
from pretrain.model.random_values import Distribution, draw, normal

INITIAL_DEVIATION = 0.02
_VECTORS = re.compile(r"norm|bias$|\.ffn\.0\.")  # `ffn.0` is the LayerNorm of the action head's blocks


def sharded_dimension(name: str) -> int | None:
    """Dimension along which tensor-parallel ranks shard a parameter; None: it is replicated."""
    if name.startswith(ACTION_HEAD_PREFIX):
        return None
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return 1
    replicated = "norm" in name and "q_norm" not in name and "k_norm" not in name
    return None if replicated else 0


def is_matrix(name: str) -> bool:
    """Whether weight decay acts on a parameter: not on norms and biases.

    Decided by name, not by shape: q/k norms are matrices [heads, head size], and under ZeRO-3 parameters are
    empty.
    """
    return _VECTORS.search(name) is None


@dataclass(frozen=True, slots=True)
class Shard:
    """A tensor-parallel rank's shard of a parameter.

    Attributes:
        shape: Of the shard.
        dimension: Along which the parameter is sharded, as `sharded_dimension`.
        rank: Tensor-parallel rank.
        size: Tensor-parallel size.
    """

    shape: tuple[int, ...]
    dimension: int | None = None
    rank: int = 0
    size: int = 1

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def initial_values(
    name: str, shard: Shard, config: ModelConfig, seed: int, start: int = 0, stop: int | None = None
) -> Tensor:
    """Initial values of a part of one parameter, drawn alone: the same bits for every layout of ranks.

    Matrices are normal with deviation 0.02 (projections back into the residual stream divided by
    sqrt(2 * layers)), norm weights are one, biases zero; of the action head as `head_distribution`.

    Args:
        name: Of the parameter in `pretrain.model.transformer.Transformer`.
        shard: Of which a part is drawn.
        config: Of the model.
        seed: Of the random values.
        start: First element of the part, in row-major order of the shard.
        stop: Last element, exclusive; None: to the end.

    Returns:
        fp32 [stop - start], on the CPU.
    """
    stop = shard.count if stop is None else min(stop, shard.count)
    if start >= stop:
        return torch.empty(0)
    distribution = _distribution(name, shard.shape, config)
    if not callable(distribution):
        return torch.full((stop - start,), distribution)
    return _drawn(f"{seed}/{name}", shard, start, stop, distribution)


def _distribution(name: str, shape: tuple[int, ...], config: ModelConfig) -> Distribution | float:
    """Distribution of the initial values of a parameter, or the one value that all of them have."""
    if name.startswith(ACTION_HEAD_PREFIX):
        return head_distribution(name, shape)
    if "norm" in name:
        return 0.0 if name.endswith("bias") else 1.0
    return normal(INITIAL_DEVIATION / (math.sqrt(2 * config.layers) if sharded_dimension(name) else 1.0))


def _drawn(name: str, shard: Shard, start: int, stop: int, distribution: Distribution) -> Tensor:
    """Elements `start` to `stop` of a shard: the rows that they are in are drawn, or the part of one row."""
    width = shard.shape[-1]
    columns, shift = width, [0, 0]  # of the whole parameter; of the shard in it
    if shard.dimension is not None:
        shift[shard.dimension] = shard.rank * shard.shape[shard.dimension]
        columns *= shard.size if shard.dimension == 1 else 1
    first, last = start // width, -(-stop // width)
    selected = (start - first * width, stop - first * width) if last == first + 1 else (0, width)
    rows = (first + shift[0], last + shift[0])
    values = draw(name, columns, rows, (selected[0] + shift[1], selected[1] + shift[1]), distribution)
    skipped = start - first * width - selected[0]
    return values.flatten()[skipped : skipped + stop - start]
