"""A randomly initialised Chameleon of Hugging Face, to compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer, sharded_dimension

TINY = ModelConfig(
    vocabulary_size=16_384,
    hidden_size=32,
    ffn_size=48,
    layers=2,
    heads=4,
    max_positions=256,
    dropout=0.0,
)
LENGTH = 40


def chameleon(config: ModelConfig) -> Any:
    """`ChameleonForConditionalGeneration` of these sizes, with norms that are not the identity."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

    torch.manual_seed(0)
    model = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=config.vocabulary_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.shared_heads,
            swin_norm=config.swin_norm,
            max_position_embeddings=config.max_positions,
            vocabulary_map={"<image>": 8711, "IMGIMGA" + "Z": 4},
            vq_config=ChameleonVQVAEConfig(
                embed_dim=8, num_embeddings=16, latent_channels=8, base_channels=32, channel_multiplier=[1, 1]
            ),
        )
    ).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "norm" in name and "vqmodel" not in name:  # initially ones
                tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def random_tokens(config: ModelConfig) -> Tensor:
    """Ids [2, S], none of which is an image for Hugging Face."""
    return torch.randint(
        8_800, config.vocabulary_size, (2, LENGTH), generator=torch.Generator().manual_seed(1)
    )


@torch.no_grad()
def chameleon_logits(model: Any, tokens: Tensor) -> Tensor:
    """Logits [2, S, V] without the last step, which masks image codes."""
    return model.lm_head(model.model(input_ids=tokens).last_hidden_state)


@torch.no_grad()
def our_logits(model: Transformer, tokens: Tensor) -> Tensor:
    """Logits [2, S, V / ranks] under a plain causal mask."""
    mask = packed_mask(torch.ones_like(tokens), torch.zeros_like(tokens), model.config, tokens.device)
    return model(tokens, torch.arange(LENGTH).expand(tokens.shape), mask)


def load_share(model: Transformer, weights: dict[str, Tensor], rank: int = 0, size: int = 1) -> None:
    """Load our model's shard of Hugging Face's weights; names must match exactly."""
    shares = {}
    for name, tensor in weights.items():
        if "vqmodel" in name:
            continue
        dimension = sharded_dimension(name)
        shares[name] = tensor if dimension is None else tensor.chunk(size, dim=dimension)[rank]
    missing, extra = model.load_state_dict(shares, strict=False)
    assert extra == []
    assert [name for name in missing if not name.endswith("_extra_state")] == []
