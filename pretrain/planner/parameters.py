"""Numbers of parameters, by formula."""

from __future__ import annotations

from pretrain.model.config import ModelConfig
from pretrain.planner.action_head import head_parameters


def count_parameters(model: ModelConfig, tensor: int = 1) -> tuple[int, int]:
    """Parameters of one tensor-parallel rank: in matrices, and in norms (which ZeRO does not partition).

    Those of an action head, which tensor-parallel ranks do not share out, all count as matrices.
    """
    hidden, keys = model.hidden_size, model.shared_heads * model.head_size
    matrices = (model.layers * model.layer_matrices + 2 * model.vocabulary_size * hidden) // tensor
    matrices += head_parameters(model)
    per_head = 2 * (hidden + keys) // tensor
    return matrices, model.layers * (2 * hidden + per_head) + hidden
