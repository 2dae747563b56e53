"""Compiled regions against the same functions in eager mode, and dropout within them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.model.attention.causal import CausalMask
from pretrain.model.config import ModelConfig
from pretrain.model.transformer import Transformer, initialise
from tests.support.compiling import needs_compiler

SMALL = ModelConfig(256, hidden_size=64, ffn_size=96, layers=3, heads=4, max_positions=48, dropout=0.2)
LARGE = replace(SMALL, key_value_heads=2, swin_norm=True)
NETWORKS = pytest.mark.parametrize("network", [SMALL, LARGE], ids=["7b", "34b"])


def results(config: ModelConfig, **changes: Any) -> dict[str, Tensor]:
    """Hidden states of random tokens and all gradients."""
    model = Transformer(replace(config, **changes))
    initialise(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.linspace(-0.3, 0.3, parameter.shape[-1]))
    tokens = torch.randint(0, 256, (1, 48), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(7)
    hidden = model.train().model(tokens, torch.arange(48)[None], CausalMask())
    (hidden * torch.linspace(-1, 1, 64)).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"hidden states": hidden.detach(), **gradients}


def assert_near(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() < 2e-6 * value.norm(), name


@needs_compiler
@NETWORKS
def test_regions_equal_eager_mode_where_dropout_draws_the_same(network: ModelConfig) -> None:
    """The regions' own generator draws other values of the same distribution."""
    from torch._inductor import config

    expected = results(network, compile="off")
    torch._dynamo.reset()
    with config.patch(fallback_random=True):
        actual = results(network, compile="on")
    torch._dynamo.reset()
    assert len(expected) == 1 + 1 + 3 * 13 + 1, "hidden states; embedding, layers, norm"
    assert_near(actual, expected)


@needs_compiler
@NETWORKS
def test_dropout_within_regions_is_the_same_when_recomputed(network: ModelConfig) -> None:
    torch._dynamo.reset()
    expected = results(network, compile="on")
    for policy in ("selective", "full"):
        actual = results(network, compile="on", recompute=policy)
        assert torch.equal(actual["hidden states"], expected["hidden states"])
        assert_near(actual, expected)
    others = results(network, compile="off")
    assert not torch.allclose(others["hidden states"], expected["hidden states"], atol=1e-2), "no dropout"


@needs_compiler
def test_dropout_within_regions_keeps_the_expected_share() -> None:
    from pretrain.model.pointwise import add_dropped, compiled

    torch.manual_seed(0)
    add = compiled(add_dropped, "on")
    x = torch.zeros(400, 1000)
    first, second = (add(x, x + 1, dropout=0.2, training=True) for _ in range(2))
    assert set(first.unique().tolist()) == {0.0, 1.25}
    assert float((first == 0).float().mean()) == pytest.approx(0.2, abs=0.005)
    assert not torch.equal(first, second)
    torch.testing.assert_close(add(x, x + 1, dropout=0.2, training=False), x + 1)
