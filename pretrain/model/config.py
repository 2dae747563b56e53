"""Size and shape of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

AttentionBackend = Literal["auto", "sdpa", "flex", "flash", "flash2"]
RecomputePolicy = Literal["none", "selective", "full"]
RecomputeChoice = Literal["none", "selective", "full", "auto"]
CompileChoice = Literal["auto", "on", "off"]
RECOMPUTE_POLICIES: tuple[RecomputePolicy, ...] = get_args(RecomputePolicy)


@dataclass
class ActionHeadConfig:
    """The continuous action head of RynnVLA-002; see `pretrain.model.action_head`.

    Attributes:
        time_horizon: K, actions that it predicts: `data.chunk`, of several data sets the longest chunk.
        action_dim: D, numbers of an action; of several data sets those of the widest action.
        dropout: In its encoder layers, in training.
    """

    time_horizon: int = 5
    action_dim: int = 7
    dropout: float = 0.1


@dataclass
class ModelConfig:
    """A Chameleon-style decoder. The defaults are Chameleon-7B.

    Attributes:
        vocabulary_size: Rows of embedding and head; token ids must be below it.
        hidden_size: Width of the residual stream.
        ffn_size: Inner width of the SwiGLU feed-forward.
        layers: Transformer layers.
        heads: Attention heads.
        key_value_heads: Heads of keys and values, each shared by `heads / key_value_heads` query heads
            (Chameleon-34B has 8 of 64); null: as many as `heads`.
        swin_norm: Normalise the output of each residual branch instead of its input (Chameleon-34B).
        max_positions: Longest sample in tokens.
        rope_theta: Base of the rotary embedding.
        norm_eps: Epsilon of RMSNorm and of the q/k LayerNorm.
        dropout: On each residual branch, in training.
        action_mask: Hide earlier action blocks from later ones; false is plain causal attention.
        history_actions_visible: Let answer blocks see the action blocks before the last image; the
            published mask hides those too.
        attention: Backend of attention in training: `auto` (by hardware), `sdpa`, `flex`, `flash` or
            `flash2`; see `pretrain.model.attention`. Changes the speed, not the result.
        recompute: What the backward pass recomputes instead of saving it: `none`, `selective` (all but the
            results of matrix products and attention), `full` (whole layers) or `auto`: the first of these
            that fits the GPU's memory, by estimate (`pretrain.auto_settings`). The same result.
        recompute_layers: Number of layers, from the first, that the policy applies to; null: all.
        compile: Compile the element-wise functions with torch.compile: `auto` (on a GPU), `on` or `off`.
        action_head: The continuous action head; null: none, actions are tokens only.
    """

    vocabulary_size: int = 65_536
    hidden_size: int = 4096
    ffn_size: int = 11_008
    layers: int = 32
    heads: int = 32
    key_value_heads: int | None = None
    swin_norm: bool = False
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.05
    action_mask: bool = True
    history_actions_visible: bool = False
    attention: AttentionBackend = "auto"
    recompute: RecomputeChoice = "none"
    recompute_layers: int | None = None
    compile: CompileChoice = "auto"
    action_head: ActionHeadConfig | None = None

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads

    @property
    def shared_heads(self) -> int:
        """Heads of keys and values."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def layer_matrices(self) -> int:
        """Values in the matrices of one layer: queries and output, keys and values, feed-forward."""
        keys = self.shared_heads * self.head_size
        return self.hidden_size * (2 * self.hidden_size + 2 * keys + 3 * self.ffn_size)
