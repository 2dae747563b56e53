"""The element-wise functions against Hugging Face's modules."""

from __future__ import annotations

import pytest
import torch

from pretrain.model.config import ModelConfig
from pretrain.model.layers import RotaryTable
from pretrain.model.pointwise import (
    add_and_norm,
    add_dropped,
    add_normed,
    compiled,
    head_norm_rotary,
    rms_norm,
    swiglu,
    turn_heads,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_rounds_as_hugging_face_does(dtype: torch.dtype) -> None:
    from transformers.models.chameleon.modeling_chameleon import ChameleonRMSNorm

    torch.manual_seed(0)
    theirs = ChameleonRMSNorm(96, eps=1e-5)
    with torch.no_grad():
        theirs.weight.add_(torch.randn(96) * 0.3)
    theirs = theirs.to(dtype)
    x = (torch.randn(64, 96) * 5).to(dtype)
    assert torch.equal(rms_norm(x, theirs.weight, 1e-5), theirs(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_norm_and_rotary_embedding_equal_hugging_face(dtype: torch.dtype) -> None:
    from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm, apply_rotary_pos_emb

    torch.manual_seed(0)
    config = ModelConfig(hidden_size=96, heads=6, max_positions=64)
    norm = ChameleonLayerNorm((6, 16))
    with torch.no_grad():
        norm.weight.add_(torch.randn(6, 16) * 0.3)
        norm.bias.add_(torch.randn(6, 16) * 0.3)
    norm = norm.to(dtype)
    x = torch.randn(40, 6, 16).to(dtype)
    rotary = RotaryTable(config).at(torch.arange(5, 45)[None], dtype)
    actual = head_norm_rotary(x, norm.weight, norm.bias, rotary.cosine, rotary.sine, 1e-5)
    expected, _ = apply_rotary_pos_emb(norm(x), norm(x), rotary.cosine, rotary.sine, unsqueeze_dim=0)
    assert torch.equal(actual, expected[0])
    assert rotary.by_sequence(actual).shape == (1, 6, 40, 16)


def test_queries_and_keys_are_turned_as_each_alone() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(9, 4, 16), torch.randn(9, 2, 16)
    (q_weight, q_bias), (k_weight, k_bias) = torch.randn(2, 4, 16), torch.randn(2, 2, 16)
    cosine, sine = torch.randn(2, 9, 1, 16)
    turned = turn_heads(query, key, q_weight, q_bias, k_weight, k_bias, cosine, sine, eps=1e-5)
    assert torch.equal(turned[0], head_norm_rotary(query, q_weight, q_bias, cosine, sine, 1e-5))
    assert torch.equal(turned[1], head_norm_rotary(key, k_weight, k_bias, cosine, sine, 1e-5))


def test_branches_are_dropped_out_added_and_normalised() -> None:
    torch.manual_seed(0)
    x, branch, weight = torch.randn(6, 8), torch.randn(6, 8), torch.randn(8)
    total, normed = add_and_norm(x, branch, weight, eps=1e-5, dropout=0.5, training=False)
    assert torch.equal(total, x + branch)
    assert torch.equal(normed, rms_norm(x + branch, weight, 1e-5))
    assert torch.equal(
        add_normed(x, branch, weight, eps=1e-5, dropout=0.0, training=True),
        x + rms_norm(branch, weight, 1e-5),
    )
    dropped = add_dropped(x, branch, dropout=0.5, training=True) - x
    torch.testing.assert_close(dropped[dropped != 0], (2 * branch)[dropped != 0])
    assert 0 < int((dropped == 0).sum()) < dropped.numel()


def test_swiglu() -> None:
    gate, up = torch.randn(2, 3, 5)
    torch.testing.assert_close(swiglu(gate, up), gate / (1 + torch.exp(-gate)) * up)


def test_compile_off_returns_the_function_itself() -> None:
    assert compiled(swiglu, "off") is swiglu
