"""The continuous action head of RynnVLA-002 (arXiv 2511.17502): hidden states of a prompt -> K actions.

K x D learned queries are appended to the last hidden states of a prompt; two encoder layers (post-norm, no
positions, every row sees every row of its sample) mix them, and an MLP makes an action of each D outputs::

    hidden states [P, H] ─┐
    queries [D K, H] ─────┴─ Linear H -> W ─ 2 encoder layers ─ LayerNorm ─ queries' rows as [K, D W]
        ─ LayerNorm ─ Linear D W -> W ─ ReLU ─ 2 blocks x + ReLU(Linear(LayerNorm(x)))
        ─ LayerNorm ─ Linear W -> D

K and D are those of the longest chunk and the widest action of the training's data sets (D = 7 as published);
what an embodiment has less of the K x D numbers is neither trained nor used.

The prompt is causal and comes before the answer, so its hidden states are the same in a training sample and
when only the prompt is known: the actions of one forward pass are those that were trained.

Parameter names are the published ones. Every tensor-parallel rank holds the whole head: it has 39 million
parameters in the 7B model, half a percent, its 4 heads do not divide by 8 ranks, and the hidden states are
whole on every rank by then. ZeRO partitions it as everything else.

Shapes: N samples, P prompt tokens of all of them, Q = D K queries of a sample, H hidden, W = H / 4 width, L
longest sample with its queries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.contracts import MAX_ACTION_DIM
from data.errors import InputError
from data.stream.source_format import SourceFormat
from pretrain.model.action_prompts import ActionPrompts
from pretrain.model.config import ActionHeadConfig, ModelConfig
from pretrain.model.random_values import Distribution, normal, uniform
from pretrain.model.seeds import seed_generators

PREFIX = "action_head."
"""Of the names of its parameters."""

_WIDTH_DIVISOR = 4  # W = H / 4
_HEADS = 4
FFN_FACTOR = 4
"""Inner width of the feed-forward in multiples of W."""
LAYERS = 2
BLOCKS = 2
_QUERY_DEVIATION = 0.02


class HeadAttention(nn.Module):
    """Multi-head attention of every row over the rows of its sample."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self._dropout = dropout

    def forward(self, rows: Tensor, prompts: ActionPrompts, queries_only: bool) -> Tensor:
        """Rows [N * Q + P, W] -> as many, or [N * Q, W] with `queries_only`."""
        projected = F.linear(rows, self.in_proj_weight, self.in_proj_bias)
        by_head = prompts.by_sequence(projected).unflatten(2, (3, _HEADS, -1))
        query, key, value = by_head.permute(2, 0, 3, 1, 4)  # [N, heads, L, D] each
        if queries_only:
            query = query[:, :, : prompts.queries]
        mixed = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=prompts.valid[:, None, None],
            dropout_p=self._dropout if self.training else 0.0,
        )
        sequences = mixed.transpose(1, 2).flatten(2)
        return self.out_proj(sequences.flatten(0, 1) if queries_only else prompts.rows_of(sequences))


class HeadLayer(nn.Module):
    """An encoder layer: attention and feed-forward, each followed by the residual's LayerNorm."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = HeadAttention(width, dropout)
        self.linear1 = nn.Linear(width, FFN_FACTOR * width)
        self.linear2 = nn.Linear(FFN_FACTOR * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self._dropout = dropout

    def forward(self, rows: Tensor, prompts: ActionPrompts, queries_only: bool) -> Tensor:
        """Rows [N * Q + P, W] -> as many, or [N * Q, W] with `queries_only`."""
        mixed = self.self_attn(rows, prompts, queries_only)
        rows = self.norm1(rows[: len(mixed)] + self._drop(mixed))
        return self.norm2(rows + self._drop(self.linear2(self._drop(F.relu(self.linear1(rows))))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self._dropout, self.training)


class HeadEncoder(nn.Module):
    """The encoder layers and their final norm; only the queries' rows leave it."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(HeadLayer(width, dropout) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(width)

    def forward(self, rows: Tensor, prompts: ActionPrompts) -> Tensor:
        """Rows [N * Q + P, W] -> [N * Q, W]."""
        for number, layer in enumerate(self.layers, start=1):
            rows = layer(rows, prompts, number == LAYERS)
        return self.norm(rows)


class ResidualBlock(nn.Module):
    """x + ReLU(Linear(LayerNorm(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> [..., W]."""
        return x + self.ffn(x)


class ResidualMlp(nn.Module):
    """The outputs of an action's D queries -> its D numbers."""

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(action_dim * width)
        self.fc1 = nn.Linear(action_dim * width, width)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(BLOCKS))
        self.layer_norm2 = nn.LayerNorm(width)
        self.fc2 = nn.Linear(width, action_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D W] -> [..., D]."""
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class OutputProjection(nn.Module):
    """Holds the MLP under its published name."""

    def __init__(self, width: int, action_dim: int) -> None:
        super().__init__()
        self.model = ResidualMlp(width, action_dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D W] -> [..., D]."""
        return self.model(x)


class ActionHead(nn.Module):
    """The head; see the module's docstring.

    Args:
        config: Of the network; its `action_head` is set.

    Attributes:
        horizon: K, actions that it predicts.
        action_dim: D, numbers of an action.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.action_head is not None
        self.horizon, self.action_dim = config.action_head.time_horizon, config.action_head.action_dim
        width, dropout = head_width(config), config.action_head.dropout
        self._hidden = config.hidden_size
        self.action_token_embeddings = nn.Embedding(1, self.queries * config.hidden_size)
        self.hidden_projection = nn.Linear(config.hidden_size, width)
        self.transformer_encoder = HeadEncoder(width, dropout)
        self.output_projection = OutputProjection(width, self.action_dim)

    @property
    def queries(self) -> int:
        """Q = D K, queries of a sample."""
        return self.horizon * self.action_dim

    def forward(self, hidden: Tensor, prompts: ActionPrompts, dropout_seed: int | None = None) -> Tensor:
        """Normalised actions of each prompt.

        Args:
            hidden: [T, H], normed hidden states of the flattened sequences.
            prompts: Which of them are prompts.
            dropout_seed: Seeds the random numbers of the head in training: the same on tensor-parallel
                ranks, which hold the same weights, also where their tokens' dropout differs.

        Returns:
            fp32 [N, K, D].
        """
        if self.training and dropout_seed is not None:
            seed_generators(dropout_seed, hidden.device)
        queries = self.action_token_embeddings(torch.zeros(1, dtype=torch.int64, device=hidden.device))
        queries = queries.view(1, prompts.queries, self._hidden).expand(prompts.count, -1, -1)
        rows = torch.cat([queries.flatten(0, 1), hidden.index_select(0, prompts.tokens)])
        rows = self.transformer_encoder(self.hidden_projection(rows), prompts)
        return self.output_projection(rows.view(prompts.count, self.horizon, -1)).float()


def head_width(config: ModelConfig) -> int:
    """W, width of the head's layers."""
    return config.hidden_size // _WIDTH_DIVISOR


def check_head(config: ModelConfig) -> None:
    """Check the settings of the head, if there is one.

    Raises:
        InputError: No action, one of no numbers or too many, a hidden size that its heads do not divide.
    """
    head = config.action_head
    if head is None:
        return
    if not 1 <= head.action_dim <= MAX_ACTION_DIM:
        raise InputError(
            f"model.action_head.action_dim={head.action_dim}, expected 1 to {MAX_ACTION_DIM}; set it to the "
            "numbers of the data's widest action"
        )
    if head.time_horizon < 1:
        raise InputError(
            f"model.action_head.time_horizon={head.time_horizon}, expected at least 1; set it to data.chunk"
        )
    if not 0 <= head.dropout < 1:
        raise InputError(
            f"model.action_head.dropout={head.dropout}, expected at least 0 and below 1; correct the setting"
        )
    if config.hidden_size % (_WIDTH_DIVISOR * _HEADS):
        raise InputError(
            f"model.hidden_size={config.hidden_size} does not divide by {_WIDTH_DIVISOR * _HEADS}, as the "
            f"{_HEADS} heads of model.action_head need; change it, or set model.action_head=null"
        )


def check_head_fits(head: ActionHeadConfig, sources: Sequence[SourceFormat]) -> None:
    """Check that a head is for the longest chunk and the widest action of the data sets.

    Raises:
        InputError: It is not; states both numbers.
    """
    chunk = max(source.chunk for source in sources)
    check_head_size(head, chunk, max(source.embodiment.action_dim for source in sources))


def check_head_size(head: ActionHeadConfig, chunk: int, numbers: int) -> None:
    """Check that a head predicts what the data has.

    Args:
        head: Its settings.
        chunk: K, actions of the data's longest chunk.
        numbers: D, numbers of its widest action.

    Raises:
        InputError: It predicts others.
    """
    found = {"time_horizon": (head.time_horizon, chunk, "actions in the longest chunk")}
    found["action_dim"] = (head.action_dim, numbers, "numbers in the widest action")
    for name, (has, needed, what) in found.items():
        if has != needed:
            raise InputError(
                f"model.action_head.{name}={has}, but the data has {needed} {what}; set it to {needed}"
            )


def head_distribution(name: str, shape: tuple[int, ...]) -> Distribution | float:
    """Distribution of the initial values of one parameter of the head, or the one value that all have.

    Queries are normal with deviation 0.02 (as published), weights uniform as torch's Linear and
    MultiheadAttention draw them, norm weights one, biases zero.

    Args:
        name: Of the parameter in `pretrain.model.transformer.Transformer`.
        shape: Of the parameter.
    """
    if name.endswith("bias"):
        return 0.0
    if len(shape) == 1:
        return 1.0
    if "action_token_embeddings" in name:
        return normal(_QUERY_DEVIATION)
    return uniform(math.sqrt(6 / sum(shape)) if name.endswith("in_proj_weight") else 1 / math.sqrt(shape[1]))
