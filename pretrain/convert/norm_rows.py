"""q/k norms in the published layout: one row for heads that follow each other and have the same values.

The published class has one number of rows, `model_parallel_size`, for all its q and k norms: Chameleon was
trained on so many ranks, each of which had one row for its heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from data.errors import InputError
from pretrain.checkpoint.tensor_blocks import LazyTensor
from pretrain.convert.chameleon import norm_heads
from pretrain.model.config import ModelConfig


def share_norm_rows(tensors: Sequence[LazyTensor], config: ModelConfig) -> tuple[list[LazyTensor], int]:
    """Store q/k norms in as few rows as reproduce them; the tensors in the same order, and the rows.

    Args:
        tensors: Of the network, norms [heads, head size]; all norms are read.
        config: Of the network.

    Raises:
        InputError: Query heads that share a key head have norms of their own, which no number of rows for
            both can hold.
    """
    norms = {tensor.name: _rows(tensor) for tensor in tensors if norm_heads(config, tensor.name) is not None}
    most = math.gcd(config.heads, config.shared_heads)
    fitting = (
        rows
        for rows in range(1, most + 1)
        if most % rows == 0 and all(_fits(values, rows) for values in norms.values())
    )
    if (rows := next(fitting, None)) is None:
        raise InputError(
            f"layout=published has at most {most} rows for the norms of {config.heads} query heads and "
            f"{config.shared_heads} key heads, and these need more: heads with a row in common have learned "
            "different values; take layout=transformers"
        )
    shared = {each.name: _shared(each, norms[each.name], rows) for each in tensors if each.name in norms}
    return [shared.get(tensor.name, tensor) for tensor in tensors], rows


def _rows(tensor: LazyTensor) -> list[bytes]:
    """The bytes of each row."""
    content = b"".join(tensor.blocks())
    size = len(content) // tensor.shape[0]
    return [content[start : start + size] for start in range(0, len(content), size)]


def _fits(values: Sequence[bytes], rows: int) -> bool:
    """Whether each of so many equal parts of the heads has one row of values."""
    heads = len(values) // rows
    return all(value == values[number - number % heads] for number, value in enumerate(values))


def _shared(tensor: LazyTensor, values: Sequence[bytes], rows: int) -> LazyTensor:
    kept = values[:: len(values) // rows]
    return replace(tensor, shape=(rows, *tensor.shape[1:]), blocks=lambda: kept)
