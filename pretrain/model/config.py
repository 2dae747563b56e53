"""Size and shape of the network."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ModelConfig:
    """A Chameleon-style decoder. The defaults are Chameleon-7B.

    Attributes:
        vocabulary_size: Rows of embedding and head; token ids must be below it.
        hidden_size: Width of the residual stream.
        ffn_size: Inner width of the SwiGLU feed-forward.
        layers: Transformer layers.
        heads: Attention heads (multi-head: as many key/value heads).
        max_positions: Longest sample in tokens.
        rope_theta: Base of the rotary embedding.
        norm_eps: Epsilon of RMSNorm and of the q/k LayerNorm.
        dropout: On each residual branch, in training.
        action_mask: Hide earlier action blocks from later ones; false is plain causal attention.
        recompute: Recompute layer activations in the backward pass.
    """

    vocabulary_size: int = 65_536
    hidden_size: int = 4096
    ffn_size: int = 11_008
    layers: int = 32
    heads: int = 32
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.05
    action_mask: bool = True
    recompute: bool = False

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.heads
