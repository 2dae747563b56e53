"""The mask of prompts: which form it takes, and prefilling under a block-sparse one."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from pretrain.model import transformer
from pretrain.model.attention import choose
from pretrain.model.attention.cached import CachedMask
from pretrain.model.attention.call import attention
from pretrain.model.attention.causal import CausalMask
from pretrain.model.attention.dense import DenseMask
from pretrain.model.attention.flex import FlexMask
from pretrain.model.attention.hardware import Hardware
from pretrain.model.attention.prompts import prompt_mask
from pretrain.model.config import AttentionBackend, ModelConfig
from pretrain.model.decoding_session import DecodingSession
from pretrain.model.generate import chunk_answer
from tests.support.chameleon import TINY
from tests.support.compiling import needs_compiler
from tests.support.decoding import dream_prompt, prompt_of, small_model

CPU = torch.device("cpu")
H200 = Hardware("cuda", (9, 0), {"triton": "3"})
SEGMENTS = torch.tensor([[1] * 30 + [0] * 10, [1] * 40])
HIDING = torch.tensor([[0] * 10 + [1] * 9 + [2] * 9 + [0] * 12, [0] * 40])


def chosen(monkeypatch: pytest.MonkeyPatch, hardware: Hardware, **changes: Any) -> type:
    """The kind of mask on some hardware, in bf16 with heads of 64."""
    monkeypatch.setattr(choose, "detect", lambda device: hardware)
    sizes: dict[str, Any] = {"hidden_size": 256, "heads": 4}
    blocks = changes.pop("blocks", HIDING)
    config = ModelConfig(**{**TINY.__dict__, **sizes, **changes})
    return type(prompt_mask(SEGMENTS, blocks, config, CPU, torch.bfloat16))


@pytest.mark.parametrize("backend", ["auto", "flex", "flash", "flash2"])
def test_blocks_are_masked_by_what_the_hardware_has_whatever_was_trained_with(
    monkeypatch: pytest.MonkeyPatch, backend: AttentionBackend
) -> None:
    assert chosen(monkeypatch, H200, attention=backend) is FlexMask
    assert chosen(monkeypatch, Hardware("cuda", (7, 0), {"triton": "3"}), attention=backend) is DenseMask
    assert chosen(monkeypatch, Hardware("cpu"), attention=backend) is DenseMask


def test_a_model_that_asks_for_the_reference_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, H200, attention="sdpa") is DenseMask


def test_prompts_without_hidden_blocks_are_plain_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in ({"blocks": -HIDING}, {"blocks": HIDING * 0}, {"action_mask": False}):
        for hardware in (H200, Hardware("cpu")):
            assert chosen(monkeypatch, hardware, **changes) is CausalMask


@needs_compiler
def test_prefilling_under_a_block_sparse_mask_gives_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(layers=4)
    hiding = [*dream_prompt(5, 3)[:-1], *dream_prompt(6, 0)[-10:]]  # two actions after the last image
    prompts = [hiding, prompt_of(1, 9)]

    def decoded() -> tuple[torch.Tensor, torch.Tensor]:
        with DecodingSession(model, prompts, chunk_answer(2, 7, {}), width=70) as session:
            hidden = session.forward([0, 9])
            return hidden, session._buffers.cache._entries.clone()

    with torch.inference_mode():
        expected = decoded()
        made: list[FlexMask] = []

        def flex(segments: torch.Tensor, blocks: torch.Tensor, *_: object) -> FlexMask:
            made.append(FlexMask.packed(segments, blocks, CPU, options={}))
            return made[-1]

        monkeypatch.setattr(transformer, "prompt_mask", flex)
        found = decoded()
    assert len(made) == 1
    for actual, reference in zip(found, expected, strict=True):
        assert torch.isfinite(actual).all(), "a row of padding sees no key"
        torch.testing.assert_close(actual, reference, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(transformer, "prompt_mask", lambda *_: CausalMask())
    with pytest.raises(AssertionError):
        torch.testing.assert_close(decoded()[1], expected[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [4, 2, 1])
def test_heads_that_share_keys_attend_as_the_reference(heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    seen = torch.rand(2, 3, 20, generator=generator) < 0.5
    seen[..., 0] = True
    # As in the layers: queries [B, Q, N, D], transposed.
    query, key, value = draw(2, 3, 4, 8).transpose(1, 2), draw(2, heads, 20, 8), draw(2, heads, 20, 8)
    actual = attention(query, key, value, CachedMask.of(seen, torch.float32))
    expected = attention(query, key, value, DenseMask(seen.unsqueeze(1)))
    torch.testing.assert_close(actual, expected)
    hidden = ~seen.any(1)
    assert hidden.any()
    key.transpose(1, 2)[hidden] = 100.0
    value.transpose(1, 2)[hidden] = 100.0
    unchanged = attention(query, key, value, CachedMask.of(seen, torch.float32))
    assert torch.equal(unchanged, actual), "what is hidden counts"
