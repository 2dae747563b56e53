"""What follows from a parameter's name: how it is sharded, decayed, and initialised."""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from pretrain.model.action_head import PREFIX as ACTION_HEAD_PREFIX
from pretrain.model.action_head import initial_head_values
from pretrain.model.config import ModelConfig
from pretrain.model.factory import shard_of
from pretrain.model.seeds import seed_of

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


def initial_values(
    name: str,
    shape: tuple[int, ...],
    dimension: int | None,
    config: ModelConfig,
    seed: int,
    rank: int,
    size: int,
) -> Tensor:
    """This rank's shard of the initial values of one parameter.

    Matrices are normal with deviation 0.02 (projections back into the residual stream divided by
    sqrt(2 * layers)), norm weights are one, biases zero; of the action head as `initial_head_values`. The
    whole matrix is drawn and this rank's shard returned.

    Args:
        name: Of the parameter in `pretrain.model.transformer.Transformer`.
        shape: Of the shard.
        dimension: As `sharded_dimension`.
        config: Of the model.
        seed: Of the random values.
        rank: Tensor-parallel rank.
        size: Tensor-parallel size.

    Returns:
        fp32 `shape`, on the CPU.
    """
    if name.startswith(ACTION_HEAD_PREFIX):
        return initial_head_values(name, shape, _generator(seed, name))
    if "norm" in name:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
    assert dimension is not None
    whole = list(shape)
    whole[dimension] *= size
    deviation = INITIAL_DEVIATION / (math.sqrt(2 * config.layers) if dimension else 1.0)
    values = torch.empty(whole).normal_(0.0, deviation, generator=_generator(seed, name))
    return shard_of(values, dimension, rank, size)


def _generator(seed: int, name: str) -> torch.Generator:
    """Random numbers that depend on the seed and the parameter's name alone."""
    return torch.Generator().manual_seed(seed_of(f"{seed}/{name}"))
