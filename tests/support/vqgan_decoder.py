"""The decoder of "Taming Transformers", to compare with."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from data.tokens.image_model import ImageModelConfig


def published_decoder(w: Mapping[str, Tensor], codes: Tensor, config: ImageModelConfig) -> Tensor:
    """Codes [N, R, C] -> frames [N, 3, H, W], written out from the names of the weights alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)

    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=padding)

    def swish(x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)

    def residual(x: Tensor, name: str) -> Tensor:
        h = conv(swish(norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = conv(swish(norm(h, f"{name}.norm2")), f"{name}.conv2")
        return h + (conv(x, f"{name}.nin_shortcut", 0) if f"{name}.nin_shortcut.weight" in w else x)

    def attention(x: Tensor, name: str) -> Tensor:
        h = norm(x, f"{name}.norm")
        q, k, v = (conv(h, f"{name}.{part}", 0).flatten(2) for part in "qkv")
        scores = torch.einsum("bci,bcj->bij", q, k) / math.sqrt(q.shape[1])
        mixed = torch.einsum("bij,bcj->bci", scores.softmax(-1), v)
        return x + conv(mixed.reshape(x.shape), f"{name}.proj_out", 0)

    x = w["quantize.embedding.weight"][codes].permute(0, 3, 1, 2)
    x = conv(conv(x, "post_quant_conv", 0), "decoder.conv_in")
    x = residual(x, "decoder.mid.block_1")
    x = residual(attention(x, "decoder.mid.attn_1"), "decoder.mid.block_2")
    for level in reversed(range(len(config.channel_multiplier))):
        for number in range(config.residual_blocks + 1):
            x = residual(x, f"decoder.up.{level}.block.{number}")
            if config.pixels >> level in config.attention_resolutions:
                x = attention(x, f"decoder.up.{level}.attn.{number}")
        if level:
            x = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3), f"decoder.up.{level}.upsample.conv")
    return conv(swish(norm(x, "decoder.norm_out")), "decoder.conv_out")
