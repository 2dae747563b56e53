"""Compiled functions and recompute policies on a GPU: the same gradients, fewer bytes saved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pretrain.model.attention.choose import packed_mask
from pretrain.model.config import ModelConfig
from pretrain.model.loss import LossSettings
from pretrain.model.transformer import Transformer, initialise

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONFIG = ModelConfig(
    vocabulary_size=1024, hidden_size=512, ffn_size=1376, layers=3, heads=8, max_positions=512, dropout=0.0
)
LENGTH = 512


def model_and_inputs(changes: dict[str, Any], dtype: torch.dtype) -> tuple[Transformer, tuple[Any, ...]]:
    config = replace(CONFIG, **changes)
    model = Transformer(config)
    initialise(model, 0)
    device = torch.device("cuda")
    tokens = torch.randint(0, 1024, (2, LENGTH), generator=torch.Generator().manual_seed(0)).to(device)
    segments, blocks = np.ones(tokens.shape, np.int32), np.zeros(tokens.shape, np.int32)
    positions = torch.arange(LENGTH, device=device).expand(tokens.shape)
    mask = packed_mask(segments, blocks, config, device, dtype)
    return model.to(device, dtype).train(), (tokens, positions, mask)


def gradients(changes: dict[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    model, inputs = model_and_inputs(changes, dtype)
    labelled = torch.arange(2 * LENGTH, device="cuda")
    normaliser = torch.full((2,), 2.0 * LENGTH, device="cuda")
    torch.manual_seed(3)
    loss, _ = model(*inputs, labelled, inputs[0].flatten(), normaliser, LossSettings())
    loss.backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


def saved_bytes(changes: dict[str, Any]) -> int:
    model, inputs = model_and_inputs(changes, torch.bfloat16)
    model.model(*inputs)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    hidden = model.model(*inputs)
    assert hidden.requires_grad
    return torch.cuda.memory_allocated() - before


@pytest.mark.parametrize("attention", ["sdpa", "flex"])
@pytest.mark.parametrize("policy", ["none", "selective", "full"])
def test_gradients_equal_those_without_recomputation_and_compilation(attention: str, policy: str) -> None:
    from torch._inductor import config

    base = {"attention": "sdpa", "compile": "off", "dropout": 0.1}
    expected = gradients(base, torch.bfloat16)
    with config.patch(fallback_random=True):  # dropout draws as in eager mode
        changes = {**base, "attention": attention, "compile": "on", "recompute": policy}
        actual = gradients(changes, torch.bfloat16)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        difference = (actual[name] - gradient).norm() / gradient.norm()
        assert difference < 0.03, f"{name}: {difference:.4f}"


@pytest.mark.parametrize("choice", ["off", "on"])
def test_each_policy_saves_less_memory(choice: str) -> None:
    saved = [
        saved_bytes({"compile": choice, "recompute": policy}) for policy in ("none", "selective", "full")
    ]
    assert saved[0] > 1.2 * saved[1] > 1.2 * 1.5 * saved[2]
