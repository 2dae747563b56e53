"""The network against Hugging Face's Chameleon."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from data.errors import InputError
from pretrain.model.cache import DecodingCache
from pretrain.model.transformer import Transformer, check_divides, initialise
from tests.support.chameleon import (
    LENGTH,
    TINY,
    chameleon,
    chameleon_logits,
    load_share,
    our_logits,
    random_tokens,
)


@pytest.mark.parametrize(
    "changes",
    [{}, {"key_value_heads": 2}, {"swin_norm": True}, {"heads": 8, "key_value_heads": 2, "swin_norm": True}],
    ids=["7b", "shared heads", "swin norm", "34b"],
)
def test_logits_equal_hugging_face_chameleon(changes: dict[str, Any]) -> None:
    config = replace(TINY, **changes)
    theirs = chameleon(config)
    weights = dict(theirs.state_dict())
    k_norm = weights["model.layers.0.self_attn.k_norm.weight"]
    assert k_norm.shape == (config.shared_heads, config.head_size)
    ours = Transformer(config).eval()
    load_share(ours, weights)
    tokens = random_tokens(config)
    actual = our_logits(ours, tokens)
    torch.testing.assert_close(actual, chameleon_logits(theirs, tokens), atol=1e-5, rtol=0)


def test_bf16_rounds_where_hugging_face_does() -> None:
    """Both round after the same operations, so they are closer to each other than either to fp32."""
    config = replace(TINY, heads=8, key_value_heads=2, swin_norm=True, hidden_size=128, ffn_size=352)
    theirs = chameleon(config)
    tokens = random_tokens(config)
    exact = chameleon_logits(theirs, tokens)
    ours = Transformer(config).eval()
    load_share(ours, dict(theirs.state_dict()))
    frequencies = theirs.model.rotary_emb.inv_freq.clone()
    theirs.bfloat16()
    theirs.model.rotary_emb.inv_freq = frequencies  # `from_pretrained` leaves them in fp32
    expected = chameleon_logits(theirs, tokens).float()
    actual = our_logits(ours.bfloat16(), tokens).float()
    rounding = (expected - exact).norm()
    assert 0 < rounding < 0.02 * exact.norm()
    assert (actual - expected).norm() < 0.1 * rounding


def test_decoding_with_a_cache_gives_the_same_hidden_states_with_shared_heads() -> None:
    config = replace(TINY, heads=8, key_value_heads=2, swin_norm=True)
    model = Transformer(config).eval()
    load_share(model, dict(chameleon(config).state_dict()))
    tokens = random_tokens(config)
    positions = torch.arange(LENGTH).expand(tokens.shape)
    zeros = torch.zeros_like(tokens)
    cache = DecodingCache(config, len(tokens), LENGTH + 3, tokens.device, torch.float32)
    parts = []
    with torch.no_grad():
        for slots in torch.arange(LENGTH).split([30, 1, LENGTH - 31]):
            ids, places, blocks = (each[:, slots] for each in (tokens, positions, zeros))
            parts.append(model.decode(ids, places, blocks, slots, cache))
        actual = model.lm_head(torch.cat(parts, dim=1))
    torch.testing.assert_close(actual, our_logits(model, tokens), atol=1e-5, rtol=0)


def test_initial_weights_depend_on_name_and_seed_only() -> None:
    first, second, other = (Transformer(TINY) for _ in range(3))
    initialise(first, 1)
    torch.manual_seed(99)
    initialise(second, 1)
    initialise(other, 2)
    for (name, a), (_, b), (_, c) in zip(
        first.named_parameters(), second.named_parameters(), other.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert "norm" in name or not torch.equal(a, c), name


@pytest.mark.parametrize(
    ("changes", "tensor", "message"),
    [
        ({"heads": 5}, 1, r"hidden_size=32 over model\.heads=5"),
        ({"key_value_heads": 3}, 1, r"heads=4 does not divide by model\.key_value_heads=3"),
        ({"key_value_heads": 2}, 4, r"key_value_heads=2 does not divide by parallel\.tensor=4"),
        ({}, 8, r"heads=4 does not divide by parallel\.tensor=8"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(changes: dict[str, Any], tensor: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_divides(replace(TINY, **changes), tensor)
